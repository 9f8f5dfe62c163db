//! Shared access signatures: service SAS for a container or blob, and account SAS.

use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::account::{Account, Presented};
use super::grant::Grant;
use crate::store::error::ServiceError;

/// Checks the SAS in the query.
pub(super) fn verify(account: &Account, request: &Presented<'_>) -> Result<Grant, ServiceError> {
    let query = &request.target.query;
    let field = |name: &str| query.get(name).unwrap_or_default();
    let sv = field("sv");
    if sv.len() != 10 || sv < "2015-04-05" {
        return Err(ServiceError::authentication_failed(format!(
            "sv={sv:?} is not a supported signed version (2015-04-05 or later)."
        )));
    }
    let is_account = query.has("ss") || query.has("srt");
    let to_sign = if is_account {
        account_string(account, sv, &field)
    } else {
        service_string(account, request, sv, &field)?
    };
    if !account.verifies(&to_sign, field("sig")) {
        return Err(ServiceError::authentication_failed(format!(
            "Signature did not match. String to sign used was {to_sign}"
        )));
    }
    check_time(field("st"), field("se"), request.now)?;
    if field("spr") == "https" && !request.target.secure {
        return Err(ServiceError::protocol_mismatch());
    }
    check_ip(field("sip"), request)?;
    let permissions = field("sp").to_owned();
    if is_account {
        if !field("ss").contains('b') {
            return Err(ServiceError::service_mismatch());
        }
        return Ok(Grant::Sas {
            permissions,
            resource_types: Some(field("srt").to_owned()),
            one_blob: false,
        });
    }
    Ok(Grant::Sas {
        permissions,
        resource_types: None,
        one_blob: field("sr") == "b",
    })
}

fn account_string<'q>(account: &Account, sv: &str, field: &dyn Fn(&str) -> &'q str) -> String {
    let mut lines = vec![account.name.as_str()];
    lines.extend(["sp", "ss", "srt", "st", "se", "sip", "spr", "sv"].map(field));
    if sv >= "2020-12-06" {
        lines.push(field("ses"));
    }
    lines.push("");
    lines.join("\n")
}

fn service_string<'q>(
    account: &Account,
    request: &Presented<'_>,
    sv: &str,
    field: &dyn Fn(&str) -> &'q str,
) -> Result<String, ServiceError> {
    let target = request.target;
    let container = target
        .container
        .as_deref()
        .ok_or_else(ServiceError::resource_type_mismatch)?;
    let resource = match (field("sr"), &target.blob) {
        ("c", _) => format!("/blob/{}/{container}", account.name),
        ("b", Some(blob)) => format!("/blob/{}/{container}/{blob}", account.name),
        ("b", None) => format!("/blob/{}/{container}", account.name),
        (other, _) => {
            return Err(ServiceError::authentication_failed(format!(
                "sr={other:?} is not supported: b (blob) or c (container)."
            )));
        }
    };
    if !field("si").is_empty() {
        return Err(ServiceError::authentication_failed(
            "si: stored access policies are not supported by the embedded blob store.",
        ));
    }
    let mut lines = vec![field("sp"), field("st"), field("se"), &resource];
    lines.extend(["si", "sip", "spr", "sv"].map(field));
    if sv >= "2018-11-09" {
        lines.extend([field("sr"), ""]);
    }
    if sv >= "2020-12-06" {
        lines.push(field("ses"));
    }
    lines.extend(["rscc", "rscd", "rsce", "rscl", "rsct"].map(field));
    Ok(lines.join("\n"))
}

fn check_time(st: &str, se: &str, now: SystemTime) -> Result<(), ServiceError> {
    if se.is_empty() {
        return Err(ServiceError::authentication_failed(
            "se (signed expiry) is mandatory field.",
        ));
    }
    let now = OffsetDateTime::from(now);
    let expiry = parse_time("se", se)?;
    let start = if st.is_empty() {
        None
    } else {
        Some(parse_time("st", st)?)
    };
    if now >= expiry || start.is_some_and(|start| now < start) {
        let show = |t: OffsetDateTime| httpdate::fmt_http_date(t.into());
        return Err(ServiceError::authentication_failed(format!(
            "Signature not valid in the specified time frame: Start [{}] - Expiry [{}] - Current [{}]",
            start.map(show).unwrap_or_default(),
            show(expiry),
            show(now)
        )));
    }
    Ok(())
}

/// `YYYY-MM-DD`, with minutes, with seconds, with fractions; UTC.
fn parse_time(name: &'static str, text: &str) -> Result<OffsetDateTime, ServiceError> {
    let full = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        17 if text.ends_with('Z') => format!("{}:00Z", &text[..16]),
        _ => text.to_owned(),
    };
    OffsetDateTime::parse(&full, &Rfc3339).map_err(|_| {
        ServiceError::authentication_failed(format!("{name}={text:?} is not in a valid ISO 8601 format."))
    })
}

fn check_ip(sip: &str, request: &Presented<'_>) -> Result<(), ServiceError> {
    let (Some(peer), false) = (request.peer, sip.is_empty()) else {
        return Ok(());
    };
    let (from, to) = sip.split_once('-').unwrap_or((sip, sip));
    match (from.parse::<std::net::IpAddr>(), to.parse::<std::net::IpAddr>()) {
        (Ok(from), Ok(to)) if (from..=to).contains(&peer) => Ok(()),
        _ => Err(ServiceError::source_ip_mismatch()),
    }
}
