//! One list of client calls for every service and every path: the embedded store must behave as Azurite does.
//!
//! Each case runs in a container of its own, states what it expects, and notes what was answered. The notes
//! of every other service are compared with those of the embedded store over HTTP: what no expectation names
//! must agree too. Where Azurite is known to differ, the case says so with the reason
//! ([`context::Context::differs`]).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

#[path = "conformance/access.rs"]
mod access;
#[path = "conformance/account.rs"]
mod account;
#[path = "conformance/batches.rs"]
mod batches;
#[path = "conformance/blobs.rs"]
mod blobs;
#[path = "conformance/blocks.rs"]
mod blocks;
#[path = "conformance/conditions.rs"]
mod conditions;
#[path = "conformance/containers.rs"]
mod containers;
#[path = "conformance/context.rs"]
mod context;
#[path = "conformance/copies.rs"]
mod copies;
#[path = "conformance/leases.rs"]
mod leases;
#[path = "conformance/listings.rs"]
mod listings;
#[path = "conformance/services.rs"]
mod services;
#[path = "conformance/wire.rs"]
mod wire;

use std::process::ExitCode;
use std::sync::Arc;

use context::Case;
use libtest_mimic::{Arguments, Failed, Trial};
use services::{Services, Target};

/// Makes a list of cases out of functions.
macro_rules! cases {
    ($($module:ident: $($case:ident)+;)+) => {
        vec![$($(Case {
            name: concat!(stringify!($module), "::", stringify!($case)),
            run: |context| Box::pin($module::$case(context)),
        },)+)+]
    };
}

fn cases() -> Vec<Case> {
    cases! {
        access: shared_key_with_the_wrong_key sas_reads_and_lists sas_refusals anonymous;
        blobs: put_get_head ranges empty_blob overwrite metadata missing delete names content_type;
        blocks: commit_orders latest_prefers_staged reuse_and_drop missing_block staged_only_is_invisible
            ids_of_other_lengths put_discards_blocks many_blocks empty_list stage_from;
        conditions: put commit get_and_head set_metadata_and_delete;
        containers: life metadata_is_replaced missing;
        copies: keeps_or_replaces_metadata onto_itself conditions missing_source block_ids_survive;
        leases: guard_writes renew_release_break only_one;
        batches: deletions by_sas;
        listings: folded paged with_metadata odd_names empty prefix_is_no_folder;
        wire: versions_and_ids error_body range_headers checksums content_headers dates foreign_types
            block_list_xml bad_requests copy_headers unmodified_since;
        account: container_names container_lease lease_headers list_containers list_shape account_information;
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let services = Arc::new(Services::default());
    let mut trials = Vec::new();
    let account = match services::Account::given() {
        Ok(account) => account.is_some(),
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    if !account {
        let reason = format!("account (skipped: {})", services::Account::missing());
        trials.push(Trial::test(reason, || Ok(())).with_ignored_flag(true));
    }
    for target in Target::LOCAL
        .into_iter()
        .chain(account.then_some(Target::Account))
    {
        for case in cases() {
            let services = Arc::clone(&services);
            trials.push(Trial::test(format!("{target}::{}", case.name), move || {
                context::run(&services, target, &case).map_err(|error| Failed::from(format!("{error:#}")))
            }));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // The services end here, before the process does.
    drop(services);
    conclusion.exit_code()
}
