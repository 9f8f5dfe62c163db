//! The cases, in the order in which they run.

mod hostile;
mod lifetime;
mod pages;
mod pressure;
mod probe;
mod refusal;
mod removal;
mod shortage;
mod transfer;
mod uring;
mod whole;

use crate::runner::Case;

macro_rules! cases {
    ($($module:ident::$name:ident),* $(,)?) => {
        vec![$(Case { name: concat!(stringify!($module), "::", stringify!($name)), run: $module::$name }),*]
    };
}

/// All of them.
pub(crate) fn all() -> Vec<Case> {
    let mut all = cases![
        whole::load,
        refusal::numbers,
        refusal::lengths,
        refusal::addresses,
        refusal::foreign_credentials,
        transfer::wire_format,
        transfer::size_classes,
        transfer::threads,
        transfer::largest,
        transfer::unaligned,
        transfer::host_status,
        pages::one_page_for_all,
        pages::zero_page,
        pages::fork_copy,
        pages::private_file,
        pages::read_only,
        pressure::ring_full,
        pressure::ids_used_up,
        pressure::pin_budget,
        pressure::channel_rides_it_out,
        uring::both_ways,
        uring::in_flight_256,
        uring::refusals,
        uring::ring_closed,
        uring::killed,
        whole::no_leak,
        whole::loader_unloads,
        lifetime::plain_signal,
        lifetime::killed_private,
        lifetime::killed_shared,
        lifetime::unload_refused,
        lifetime::unload_waits,
        removal::drained,
        removal::unanswered,
        removal::with_ring,
        removal::channel_reopens,
        removal::unbind,
        removal::unbind_with_ring,
        // What comes before is ordinary operation.
        whole::quiet_log,
        removal::under_load,
        removal::met_while_sent,
        hostile::short_answer,
        hostile::oversized_answer,
        hostile::unknown_id,
        hostile::answered_twice,
        hostile::wrong_type,
        hostile::flood,
        probe::open_refused,
        probe::name_taken,
        shortage::request,
        shortage::probe,
        whole::no_leak,
        whole::loader_meets_modules_disabled,
        whole::clean_kernel,
    ];
    // Only the debug kernel can let an allocation fail, and look for what was lost.
    all.retain(|case| match case.name {
        "whole::no_leak" => whole::finds_leaks(),
        name if name.starts_with("shortage::") => shortage::can_fail(),
        _ => true,
    });
    all
}
