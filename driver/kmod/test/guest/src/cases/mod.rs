//! The cases, in the order in which they run.

mod hostile;
mod lifetime;
mod pages;
mod pressure;
mod refusal;
mod removal;
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
    cases![
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
        whole::quiet_log,
        hostile::short_answer,
        hostile::oversized_answer,
        hostile::unknown_id,
        hostile::answered_twice,
        hostile::wrong_type,
        hostile::flood,
        whole::loader_unloads,
        lifetime::plain_signal,
        lifetime::killed_private,
        lifetime::killed_shared,
        lifetime::unload_refused,
        lifetime::unload_waits,
        removal::drained,
        removal::unanswered,
        removal::channel_reopens,
        removal::under_load,
        removal::unbind,
        whole::loader_meets_modules_disabled,
        whole::clean_kernel,
    ]
}
