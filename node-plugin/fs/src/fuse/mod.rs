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

pub use self::mount::{Detached, Tree, mount, mount_detached};
pub(crate) use self::session::serve;
pub(crate) use self::tuning::{device_at, set_read_ahead};
