//! The only place that knows fuser: mount, session, dispatch, kernel tuning.

mod call;
mod dispatch;
mod filesystem;
mod mount;
mod ops;
mod replies;
mod session;
mod silence;
mod tuning;

pub use self::mount::mount;
pub(crate) use self::session::serve;
pub(crate) use self::tuning::set_read_ahead;
