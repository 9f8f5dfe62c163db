//! A thin Azure Blob client: requests as data, sent by a [`transport::Transport`] over HTTPS or the
//! accelerated channel.

pub mod auth;
mod body;
pub mod client;
pub mod crypto;
pub mod error;
mod names;
mod observer;
mod pace;
mod patience;
mod progress;
mod protection;
pub mod request;
pub mod response;
pub mod secret;
mod stored;
mod trace;
pub mod transport;
pub mod types;
mod xml;

pub use body::{Body, Piece};
pub use client::{Client, ClientConfig, Container, UnreadableTags};
pub use error::{Error, Result};
pub use observer::{Exchange, Observer};
pub use pace::{Accounts, Load};
pub use patience::{NoPatience, Patience};
pub use progress::{Moved, Progress};
pub use protection::{Availability, Protection};
pub use stored::{ContentTypes, StoredHeaders};
pub use trace::TRACE;
pub use types::*;
