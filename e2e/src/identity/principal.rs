//! Who may have tokens.

use serde::Deserialize;

/// Somebody who may have tokens. Ids are compared without regard to case, as the services do.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Identity {
    /// Id of the tenant (directory).
    pub tenant: String,
    /// Client (application) id.
    pub client_id: String,
    /// Resource id, of a managed identity.
    #[serde(default)]
    pub resource_id: Option<String>,
    /// Whether the machine has it: the metadata service then gives its tokens.
    #[serde(default)]
    pub managed: bool,
    /// Client secret, of a service principal.
    #[serde(default)]
    pub secret: Option<String>,
    /// Subject of the federated tokens that stand for it (`system:serviceaccount:NAMESPACE:NAME`); a `*`
    /// stands for any text without a colon.
    #[serde(default)]
    pub subject: Option<String>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("tenant", &self.tenant)
            .field("client_id", &self.client_id)
            .field("resource_id", &self.resource_id)
            .field("managed", &self.managed)
            .field("secret", &self.secret.as_ref().map(|_| "***"))
            .field("subject", &self.subject)
            .finish()
    }
}
