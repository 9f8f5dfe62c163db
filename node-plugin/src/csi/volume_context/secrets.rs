//! Secrets of a request: their known keys, held as values that never print.

use std::collections::{BTreeMap, HashMap};

use blob_client::secret::Secret;

use super::keys::nearest;
use super::table::secret_names;
use crate::error::{Error, Reason, Result};

const ACCOUNT: &str = "azurestorageaccountname";
const KEY: &str = "azurestorageaccountkey";
const SAS: &str = "azurestorageaccountsastoken";
const SPN_CLIENT: &str = "azurestoragespnclientid";
const SPN_SECRET: &str = "azurestoragespnclientsecret";
const SPN_TENANT: &str = "azurestoragespntenantid";
const MSI: &str = "msisecret";

/// What the Secret of a request holds. Keys of a Secret that mean nothing here are left alone: a Secret may
/// serve several programs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Secrets {
    /// `azurestorageaccountname` or `accountname`.
    pub account: Option<String>,
    /// `azurestorageaccountkey` or `accountkey`, base64.
    pub key: Option<Secret<String>>,
    /// `azurestorageaccountsastoken`, without a leading `?`.
    pub sas: Option<Secret<String>>,
    /// `azurestoragespnclientid`.
    pub spn_client_id: Option<String>,
    /// `azurestoragespnclientsecret`.
    pub spn_client_secret: Option<Secret<String>>,
    /// `azurestoragespntenantid`.
    pub spn_tenant_id: Option<String>,
    /// `msisecret`.
    pub msi_secret: Option<Secret<String>>,
    /// Keys that are not known, for the hint when a known one is missing.
    unknown: Vec<String>,
}

impl Secrets {
    /// Reads the map of a request.
    pub fn parse(map: &HashMap<String, String>) -> Result<Self> {
        let mut known: BTreeMap<String, String> = BTreeMap::new();
        let mut unknown = Vec::new();
        for (key, value) in map.iter().collect::<BTreeMap<_, _>>() {
            let lower = key.to_ascii_lowercase();
            if !secret_names().any(|known| known == lower) {
                unknown.push(key.clone());
                continue;
            }
            // A trailing newline is the commonest accident of `echo | base64` in a manifest.
            let value = value.trim();
            if known.insert(lower, value.to_owned()).is_some() {
                return Err(Error::new(
                    Reason::DuplicateKey,
                    format!("Secret: {key:?} is given twice (case does not count)"),
                ));
            }
        }
        let mut take = |key: &str| known.remove(key).filter(|v| !v.is_empty());
        Ok(Self {
            account: alias(take(ACCOUNT), take("accountname"), ACCOUNT, "accountname")?,
            key: alias(take(KEY), take("accountkey"), KEY, "accountkey")?.map(Secret::new),
            sas: take(SAS).map(|sas| Secret::new(sas.trim_start_matches('?').to_owned())),
            spn_client_id: take(SPN_CLIENT),
            spn_client_secret: take(SPN_SECRET).map(Secret::new),
            spn_tenant_id: take(SPN_TENANT),
            msi_secret: take(MSI).map(Secret::new),
            unknown,
        })
    }

    /// True when no known key came with the request.
    pub fn is_empty(&self) -> bool {
        *self
            == Self {
                unknown: self.unknown.clone(),
                ..Self::default()
            }
    }

    /// The error for a credential that is not there, with the misspelled key it may be under.
    pub fn missing(&self, key: &str, auth_type: &str) -> Error {
        let near = nearest(key, self.unknown.iter().map(String::as_str));
        let near = near
            .map(|near| format!("; the Secret has {near:?}, which is not known"))
            .unwrap_or_default();
        Error::new(
            Reason::MissingCredentials,
            format!("{key}: not in the request's secrets, and AzureStorageAuthType is {auth_type}{near}"),
        )
    }
}

/// One value out of a key and its alias.
fn alias(
    value: Option<String>,
    alias: Option<String>,
    name: &str,
    alias_name: &str,
) -> Result<Option<String>> {
    match (value, alias) {
        (Some(a), Some(b)) if a != b => Err(Error::new(
            Reason::ConflictingFields,
            format!("Secret: {name} and its alias {alias_name} hold different values"),
        )),
        (a, b) => Ok(a.or(b)),
    }
}
