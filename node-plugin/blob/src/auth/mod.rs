//! Who we are to the service: account key, SAS, anonymous, or a token.

use std::sync::Arc;

use async_trait::async_trait;

use crate::error::Result;
use crate::secret::Secret;

/// Credentials of a volume.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// Account key (base64), SharedKey signatures.
    SharedKey {
        /// Account name.
        account: String,
        /// Base64 key.
        key: Secret<String>,
    },
    /// Shared access signature: a query string without the leading `?`.
    Sas(Secret<String>),
    /// Public container.
    Anonymous,
    /// Entra ID bearer tokens.
    Token(Arc<dyn TokenSource>),
}

/// Gives bearer tokens for `https://storage.azure.com/.default`; caches and refreshes by itself.
#[async_trait]
pub trait TokenSource: Send + Sync + std::fmt::Debug {
    /// A token that is valid for at least the next minute.
    async fn token(&self) -> Result<Secret<String>>;
}
