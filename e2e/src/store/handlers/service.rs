//! Operations on the account: List Containers, service properties, account information.

use std::sync::PoisonError;

use super::call::Call;
use super::paging::{decode_marker, encode_marker, endpoint, max_results};
use crate::store::blob_store::BlobStore;
use crate::store::error::ServiceError;
use crate::store::reply::Reply;
use crate::store::xml::Xml;

/// List Containers.
pub(super) fn list_containers(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let query = &call.target.query;
    let prefix = query.get("prefix").unwrap_or_default();
    let max = max_results(query)?;
    let start = match query.get("marker").unwrap_or_default() {
        "" => prefix.to_owned(),
        marker => decode_marker(marker)?,
    };
    let include = query.get("include").unwrap_or_default();
    let with_metadata = include.split(',').any(|what| what.trim() == "metadata");
    let containers = store.containers.read().unwrap_or_else(PoisonError::into_inner);
    let mut xml = Xml::new();
    xml.open_with(
        "EnumerationResults",
        &[("ServiceEndpoint", &endpoint(store, call))],
    );
    xml.text("Prefix", prefix);
    xml.text("Marker", query.get("marker").unwrap_or_default());
    if query.has("maxresults") {
        xml.text("MaxResults", &max.to_string());
    }
    xml.open("Containers");
    let mut names = containers
        .range(start..)
        .take_while(|(name, _)| name.starts_with(prefix));
    for (name, container) in names.by_ref().take(max) {
        let state = container.lock();
        let lease = state.lease.shown(call.instant);
        xml.open("Container");
        xml.text("Name", name);
        xml.open("Properties");
        xml.text("Last-Modified", &state.version.http_date());
        xml.text("Etag", &state.version.etag());
        xml.text("LeaseStatus", lease.status);
        xml.text("LeaseState", lease.state);
        if let Some(duration) = lease.duration {
            xml.text("LeaseDuration", duration);
        }
        if let Some(level) = super::container::public_name(state.public) {
            xml.text("PublicAccess", level);
        }
        xml.text("DefaultEncryptionScope", "$account-encryption-key");
        xml.text("DenyEncryptionScopeOverride", "false");
        xml.text("HasImmutabilityPolicy", "false");
        xml.text("HasLegalHold", "false");
        xml.close("Properties");
        if with_metadata {
            super::list::metadata(&mut xml, &state.metadata);
        }
        xml.close("Container");
    }
    xml.close("Containers");
    let next = names
        .next()
        .map(|(name, _)| encode_marker(name))
        .unwrap_or_default();
    xml.text("NextMarker", &next);
    xml.close("EnumerationResults");
    Ok(Reply::xml(200, xml.finish()))
}

/// Get Blob Service Properties: nothing is turned on.
pub(super) fn properties() -> Result<Reply, ServiceError> {
    let retention = "<RetentionPolicy><Enabled>false</Enabled></RetentionPolicy>";
    let off = format!("<Version>1.0</Version><Enabled>false</Enabled>{retention}");
    let mut body = Xml::new().finish();
    body.push_str(&format!(
        "<StorageServiceProperties><Logging><Version>1.0</Version><Delete>false</Delete><Read>false</Read>\
         <Write>false</Write>{retention}</Logging><HourMetrics>{off}</HourMetrics>\
         <MinuteMetrics>{off}</MinuteMetrics><Cors />\
         <DeleteRetentionPolicy><Enabled>false</Enabled></DeleteRetentionPolicy>\
         <StaticWebsite><Enabled>false</Enabled></StaticWebsite></StorageServiceProperties>"
    ));
    Ok(Reply::xml(200, body))
}

/// Get Account Information: a general-purpose account.
pub(super) fn account_information(call: &Call<'_>) -> Result<Reply, ServiceError> {
    Ok(Reply::new(200)
        .header("x-ms-sku-name", "Standard_LRS")
        .header("x-ms-account-kind", "StorageV2")
        .header("x-ms-is-hns-enabled", call.settings.hierarchical.to_string()))
}
