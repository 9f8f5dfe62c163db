//! One byte budget for data, metadata and dirty blocks of all mounts of a process.
//!
//! Whoever holds memory holds a [`Permit`] for it, by size class. When the budget is used up, cached data
//! goes first (oldest first, what was used since gets a second chance), then writers wait while dirty data is
//! staged; readers always get one part, so that nobody waits for ever.
//!
//! Metadata is always granted and pushes cached data out. Above its own part of the budget, whoever holds it
//! is asked to forget what can be had again (`Budget::crowded`); dirty data has room that metadata cannot
//! take. A volume whose service does not answer keeps what others need to go on ([`Share`]).

mod grant;
mod holders;
mod ledger;
mod lost;
mod own;
mod permit;
mod queues;
mod relief;
mod right;
mod share;
mod spool;
#[cfg(test)]
mod tests;
mod turn;
mod waiting;

pub(crate) use self::holders::{Evict, Relief, Relieve};
pub(crate) use self::ledger::PROGRESS_BYTES;
pub use self::ledger::{Budget, BudgetUsage, Kind, MIN_BUDGET, MOUNT_SHARE};
pub(crate) use self::lost::Losses;
pub use self::permit::Permit;
pub use self::share::Share;
