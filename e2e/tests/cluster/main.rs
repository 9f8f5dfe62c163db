//! The driver in a real cluster: what a user of PersistentVolumeClaims, `kubectl describe` and helm gets.
//!
//! `e2e/kind/run` makes a cluster, installs the driver, the embedded store and the mock VSP, and runs this
//! program with the environment that [`lab::Settings`] names. Without it nothing runs, and nothing counts as
//! passed: a KUBECONFIG that happens to be set must not get privileged pods.
//!
//! Cases run in three phases: those with a namespace of their own run side by side; those that stop the
//! channel or the store, restart the driver or measure run alone; those that upgrade and remove the driver
//! come last.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

mod access;
mod channel;
mod errors;
mod examples;
mod lab;
mod lifecycle;
mod metrics;
mod node;
mod objects;
mod provisioning;
mod release;
mod restarts;
mod rotation;
mod scale;
mod space;
mod store;

use std::process::ExitCode;
use std::sync::Arc;

use futures::future::LocalBoxFuture;
use lab::{Lab, Settings};
use libtest_mimic::{Arguments, Failed, Trial};
use space::Space;

/// One case.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    run: for<'a> fn(&'a Space) -> LocalBoxFuture<'a, anyhow::Result<()>>,
}

/// Makes a list of cases out of functions.
macro_rules! cases {
    ($($module:ident: $($case:ident)+;)+) => {
        vec![$($(Case {
            name: concat!(stringify!($module), "::", stringify!($case)),
            run: |space| Box::pin($module::$case(space)),
        },)+)+]
    };
}

/// Cases that only touch their own namespace, longest first.
fn side_by_side() -> Vec<Case> {
    cases! {
        access: read_write_once_pod read_only_many read_write_many read_only_claim fs_group non_root sub_path;
        errors: wrong_key missing_container unknown_attribute unknown_mount_option missing_secret
            wrong_class_parameter;
        provisioning: container_for_each_claim prefix_for_each_claim static_volume inline_volume
            inline_secret_of_another_namespace inline_lends_no_identity names_out_of_the_claim retained_data
            reclaim_policy_retain mount_options secret_by_name secret_by_name_of_a_class;
        examples: container_per_claim directory_per_claim volume_name inline read_only secret_by_name
            static_volume anonymous managed_identity service_principal workload_identity;
        rotation: sas_of_a_secret_by_name key_of_a_publish_secret;
        node: label_and_registration;
    }
}

/// Cases that measure, or change something for the whole node.
fn alone() -> Vec<Case> {
    cases! {
        scale: first_byte_of_a_claim thirty_pods;
        channel: bytes_over_the_channel channel_stops_under_load;
        node: deletion_leaves_nothing;
        lifecycle: node_process_restarts node_process_is_killed two_replicas_survive_a_killed_node_process
            startup_taint controller_fails_over;
        restarts: containers_restart_while_plugin_and_store_fail;
    }
}

/// Cases that end with the driver removed.
fn release() -> Vec<Case> {
    cases! {
        release: helm_test upgrade_and_rollback inline_volumes_off_and_on update_without_the_channel
            uninstall_leaves_nothing;
    }
}

/// How many cases run side by side: they wait for the kubelet most of the time.
const THREADS: usize = 8;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let lab = match Settings::from_environment() {
        Ok(settings) => match Lab::connect(settings) {
            Ok(lab) => Some(Arc::new(lab)),
            Err(error) => {
                eprintln!("the cluster cannot be used: {error:#}");
                return ExitCode::FAILURE;
            }
        },
        Err(reason) => {
            // The test command runs this suite in a step of its own and counts it there.
            if std::env::var_os("VSC_BLOB_E2E_CLUSTER_COUNTED_APART").is_some() {
                return ExitCode::SUCCESS;
            }
            println!("cluster suite: skipped: {reason}");
            None
        }
    };
    let chosen = arguments.test_threads;
    let mut exit = ExitCode::SUCCESS;
    for (cases, threads) in [
        (side_by_side(), chosen.unwrap_or(THREADS)),
        (alone(), 1),
        (release(), 1),
    ] {
        arguments.test_threads = Some(threads);
        let trials = cases.into_iter().map(|case| trial(case, lab.clone())).collect();
        if libtest_mimic::run(&arguments, trials).has_failed() {
            exit = ExitCode::FAILURE;
        }
    }
    exit
}

fn trial(case: Case, lab: Option<Arc<Lab>>) -> Trial {
    let ignored = lab.is_none();
    Trial::test(case.name, move || {
        let lab = lab.ok_or("there is no cluster")?;
        Space::run(&lab, case.name, case.run).map_err(|error| Failed::from(format!("{error:#}")))
    })
    .with_ignored_flag(ignored)
}
