//! Credentials of the commands that reach a container by themselves: out of the environment, where `ps` does
//! not show them.

use anyhow::bail;
use blob_client::auth::Credentials;
use blob_client::secret::Secret;

use crate::csi::account::Account;

/// Credentials of an account: AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, AZURE_STORAGE_ACCOUNT beside it
/// where the URL does not name the account; none without.
pub(super) fn credentials(
    account: &Account,
    env: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<Credentials> {
    let get = |name| env(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
    let mut account = account.clone();
    if let Some(name) = get("AZURE_STORAGE_ACCOUNT") {
        // A custom domain does not show the account; an account's own domain does, and must agree.
        let shown = account
            .endpoint
            .host_str()
            .is_some_and(|h| h.starts_with(&format!("{}.blob.", account.name)));
        if name != account.name && shown {
            bail!(
                "AZURE_STORAGE_ACCOUNT: it says {name:?}, the URL says {:?}",
                account.name
            );
        }
        account.name = name;
    }
    match (get("AZURE_STORAGE_KEY"), get("AZURE_STORAGE_SAS_TOKEN")) {
        (Some(_), Some(_)) => bail!("AZURE_STORAGE_KEY and AZURE_STORAGE_SAS_TOKEN are both set; keep one"),
        (Some(key), None) => {
            let credentials = account.shared_key(Secret::new(key));
            credentials.map_err(|_| {
                anyhow::anyhow!("AZURE_STORAGE_KEY is not base64; copy it as the portal shows it")
            })
        }
        (None, Some(sas)) => Ok(Credentials::Sas(Secret::new(
            sas.trim_start_matches('?').to_owned(),
        ))),
        (None, None) => Ok(Credentials::Anonymous),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(pairs: &[(&str, &str)], url: &str) -> anyhow::Result<Credentials> {
        let (account, ..) = Account::split_url(url)?;
        let map: std::collections::HashMap<_, _> = pairs.iter().copied().collect();
        credentials(&account, |name| map.get(name).map(|v| (*v).to_owned()))
    }

    #[test]
    fn credentials_come_from_the_environment() {
        let url = "https://acct.blob.core.windows.net/c";
        assert!(matches!(found(&[], url).unwrap(), Credentials::Anonymous));
        let sas = found(&[("AZURE_STORAGE_SAS_TOKEN", "?sig=1")], url).unwrap();
        assert!(matches!(sas, Credentials::Sas(s) if s.expose() == "sig=1"));
        let key = [("AZURE_STORAGE_KEY", "a2V5"), ("AZURE_STORAGE_ACCOUNT", "acct")];
        assert!(
            matches!(found(&key, url).unwrap(), Credentials::SharedKey { account, .. } if account == "acct")
        );
        let custom = found(&key, "https://data.example.com/c").unwrap();
        assert!(matches!(custom, Credentials::SharedKey { account, .. } if account == "acct"));
    }

    #[test]
    fn wrong_environments_are_named_and_do_not_leak() {
        let url = "https://acct.blob.core.windows.net/c";
        let text = |pairs| format!("{:#}", found(pairs, url).unwrap_err());
        let both = text(&[
            ("AZURE_STORAGE_KEY", "canary"),
            ("AZURE_STORAGE_SAS_TOKEN", "canary"),
        ]);
        assert!(both.contains("both") && !both.contains("canary"), "{both}");
        let other = text(&[("AZURE_STORAGE_ACCOUNT", "other")]);
        assert!(other.contains("AZURE_STORAGE_ACCOUNT"), "{other}");
        let key = text(&[("AZURE_STORAGE_KEY", "canary!")]);
        assert!(
            key.contains("AZURE_STORAGE_KEY") && !key.contains("canary"),
            "{key}"
        );
    }
}
