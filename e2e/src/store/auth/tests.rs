//! Golden cases of signatures, and what a SAS, a token and nobody may do.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::{Presented, string_to_sign};
use crate::store::address::Target;
use crate::store::tests::Caller;
use crate::store::{AccountKey, DEV_ACCOUNT, DEV_KEY, SasOptions, WhichKey};

fn signed_string(method: &str, uri: &str, headers: &[(&str, &str)]) -> String {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let target = Target::parse(
        &uri.parse().unwrap(),
        Some("myaccount.blob.core.windows.net"),
        "myaccount",
    )
    .unwrap();
    let headers: HeaderMap = headers
        .iter()
        .map(|(n, v)| {
            (
                HeaderName::try_from(*n).unwrap(),
                HeaderValue::from_str(v).unwrap(),
            )
        })
        .collect();
    string_to_sign(
        "myaccount",
        &Presented {
            method: &method,
            target: &target,
            headers: &headers,
            body_len: 0,
            peer: None,
            now: SystemTime::now(),
        },
    )
}

#[test]
fn string_to_sign_of_the_reference() {
    // The example of REST "Authorize with Shared Key".
    let got = signed_string(
        "GET",
        "/mycontainer?restype=container&comp=metadata&timeout=20",
        &[
            ("x-ms-date", "Fri, 26 Jun 2015 23:39:12 GMT"),
            ("x-ms-version", "2015-02-21"),
            ("content-length", "0"),
        ],
    );
    assert_eq!(
        got,
        "GET\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:Fri, 26 Jun 2015 23:39:12 GMT\nx-ms-version:2015-02-21\n\
         /myaccount/mycontainer\ncomp:metadata\nrestype:container\ntimeout:20"
    );
}

#[test]
fn string_to_sign_of_a_write_with_everything() {
    let got = signed_string(
        "PUT",
        "/myaccount/c/a%20b/%C3%A4?Comp=block&blockid=QQ%3D%3D&include=b&include=a",
        &[
            ("content-length", "11"),
            ("content-md5", "md5=="),
            ("content-type", "text/plain; charset=UTF-8"),
            ("content-encoding", "gzip"),
            ("content-language", "en"),
            ("date", "Fri, 26 Jun 2015 23:39:12 GMT"),
            ("if-match", "\"0x1\""),
            ("if-none-match", "*"),
            ("range", "bytes=0-1"),
            ("x-ms-meta-m1", "  v1 "),
            ("x-ms-blob-type", "BlockBlob"),
        ],
    );
    // The raw path appears as it went over the wire; host-style names the account once.
    assert_eq!(
        got,
        "PUT\ngzip\nen\n11\nmd5==\ntext/plain; charset=UTF-8\nFri, 26 Jun 2015 23:39:12 GMT\n\n\
         \"0x1\"\n*\n\nbytes=0-1\n\
         x-ms-blob-type:BlockBlob\nx-ms-meta-m1:v1\n/myaccount/myaccount/c/a%20b/%C3%A4\n\
         blockid:QQ==\ncomp:block\ninclude:a,b"
    );
}

#[test]
fn a_wrong_key_and_an_old_date_are_refused() {
    let c = Caller::new().with_container();
    let date = httpdate::fmt_http_date(SystemTime::now());
    let wrong = c.plain(
        "GET",
        "/box/b",
        &[
            ("x-ms-date", &date),
            ("authorization", &format!("SharedKey {DEV_ACCOUNT}:AAAA")),
        ],
        b"",
    );
    assert_eq!((wrong.status, wrong.code()), (403, "AuthenticationFailed"));
    assert!(wrong.text().contains("Server used following string to sign"));
    let old = httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(16 * 60));
    let late = c.plain(
        "GET",
        "/box/b",
        &[
            ("x-ms-date", &old),
            ("authorization", &format!("SharedKey {DEV_ACCOUNT}:AAAA")),
        ],
        b"",
    );
    assert!(
        late.text().contains("Request date header too old"),
        "{}",
        late.text()
    );
    let other = c.plain(
        "GET",
        "/box/b",
        &[("x-ms-date", &date), ("authorization", "SharedKey me:AAAA")],
        b"",
    );
    assert_eq!(other.status, 403);
    assert!(!wrong.text().contains(DEV_KEY));
}

#[test]
fn either_key_is_good_until_it_is_made_anew() {
    let c = Caller::new().with_container();
    let list = |key: &str| {
        let signer = AccountKey::new(DEV_ACCOUNT, key).unwrap();
        let sas = signer.container_sas("box", &SasOptions::new("l", Duration::from_secs(60)));
        c.plain(
            "GET",
            &format!("/box?restype=container&comp=list&{sas}"),
            &[],
            b"",
        )
        .status
    };
    let (second, third) = ("c2Vjb25k", "dGhpcmQ=");
    assert_eq!((list(DEV_KEY), list(second)), (200, 403));
    c.store.renew_key(WhichKey::Key2, second).unwrap();
    assert_eq!((list(DEV_KEY), list(second)), (200, 200));
    c.store.renew_key(WhichKey::Key1, third).unwrap();
    assert_eq!((list(DEV_KEY), list(second), list(third)), (403, 200, 200));
    assert!(c.store.renew_key(WhichKey::Key1, "no key").is_err());
}

fn iso(offset: i64) -> String {
    let time = time::OffsetDateTime::now_utc() + time::Duration::seconds(offset);
    let format = time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    time.format(&format).unwrap()
}

/// A service SAS over `resource` (`/box` or `/box/blob`).
fn service_sas(c: &Caller, sr: &str, resource: &str, sp: &str, expires: i64) -> String {
    let se = iso(expires);
    let to_sign =
        format!("{sp}\n\n{se}\n/blob/{DEV_ACCOUNT}{resource}\n\n\n\n2022-11-02\n{sr}\n\n\n\n\n\n\n");
    let sig = c
        .store
        .account
        .sign(&to_sign)
        .replace('+', "%2B")
        .replace('/', "%2F")
        .replace('=', "%3D");
    format!(
        "sv=2022-11-02&sr={sr}&sp={sp}&se={}&sig={sig}",
        se.replace(':', "%3A")
    )
}

#[test]
fn a_service_sas_covers_what_it_says() {
    let c = Caller::new().with_container();
    c.put("b", b"body");
    let read = service_sas(&c, "c", "/box", "rl", 60);
    let get = c.plain("GET", &format!("/box/b?{read}"), &[], b"");
    assert_eq!((get.status, &get.body[..]), (200, &b"body"[..]), "{}", get.text());
    assert_eq!(
        c.plain(
            "GET",
            &format!("/box?restype=container&comp=list&{read}"),
            &[],
            b""
        )
        .status,
        200
    );
    let put = c.plain(
        "PUT",
        &format!("/box/n?{read}"),
        &[("x-ms-blob-type", "BlockBlob")],
        b"x",
    );
    assert_eq!((put.status, put.code()), (403, "AuthorizationPermissionMismatch"));
    assert_eq!(
        c.plain("DELETE", &format!("/box?restype=container&{read}"), &[], b"")
            .code(),
        "AuthorizationFailure"
    );
    let expired = c.plain(
        "GET",
        &format!("/box/b?{}", service_sas(&c, "c", "/box", "r", -5)),
        &[],
        b"",
    );
    assert_eq!((expired.status, expired.code()), (403, "AuthenticationFailed"));
    assert!(
        expired
            .text()
            .contains("Signature not valid in the specified time frame")
    );
    let one = service_sas(&c, "b", "/box/b", "r", 60);
    assert_eq!(c.plain("GET", &format!("/box/b?{one}"), &[], b"").status, 200);
    assert_eq!(
        c.plain("GET", &format!("/box/other?{one}"), &[], b"").code(),
        "AuthenticationFailed"
    );
    let create = service_sas(&c, "c", "/box", "c", 60);
    let blob = [("x-ms-blob-type", "BlockBlob")];
    assert_eq!(
        c.plain("PUT", &format!("/box/new?{create}"), &blob, b"x").status,
        201
    );
    assert_eq!(
        c.plain("PUT", &format!("/box/new?{create}"), &blob, b"y").code(),
        "UnauthorizedBlobOverwrite"
    );
}

#[test]
fn an_account_sas_covers_services_and_resource_types() {
    let c = Caller::new().with_container();
    c.put("b", b"body");
    let sas = |sp: &str, ss: &str, srt: &str, spr: &str| {
        let se = iso(60);
        let to_sign = format!("{DEV_ACCOUNT}\n{sp}\n{ss}\n{srt}\n\n{se}\n\n{spr}\n2022-11-02\n\n");
        let sig = c
            .store
            .account
            .sign(&to_sign)
            .replace('+', "%2B")
            .replace('/', "%2F")
            .replace('=', "%3D");
        let spr = if spr.is_empty() {
            String::new()
        } else {
            format!("&spr={spr}")
        };
        format!("sv=2022-11-02&ss={ss}&srt={srt}&sp={sp}&se={se}{spr}&sig={sig}")
    };
    let get = |sas: &str| c.plain("GET", &format!("/box/b?{sas}"), &[], b"");
    assert_eq!(get(&sas("r", "b", "o", "")).status, 200);
    assert_eq!(
        get(&sas("r", "b", "sc", "")).code(),
        "AuthorizationResourceTypeMismatch"
    );
    assert_eq!(
        get(&sas("r", "q", "o", "")).code(),
        "AuthorizationServiceMismatch"
    );
    assert_eq!(
        get(&sas("r", "b", "o", "https")).code(),
        "AuthorizationProtocolMismatch"
    );
    assert_eq!(get(&sas("r", "b", "o", "https,http")).status, 200);
    let all = sas("rwdlac", "b", "sco", "");
    assert_eq!(
        c.plain("PUT", &format!("/made?restype=container&{all}"), &[], b"")
            .status,
        201
    );
    assert_eq!(
        c.plain("GET", &format!("/?comp=list&{all}"), &[], b"").status,
        200
    );
}

#[test]
fn tokens_are_accepted_once_registered_and_nobody_reads_public_containers_only() {
    let c = Caller::new().with_container();
    c.put("b", b"body");
    let bearer = [("authorization", "Bearer token-1")];
    assert_eq!(c.plain("GET", "/box/b", &bearer, b"").status, 401);
    c.store.accept_token("token-1");
    assert_eq!(c.plain("GET", "/box/b", &bearer, b"").status, 200);
    c.store.revoke_token("token-1");
    assert_eq!(c.plain("GET", "/box/b", &bearer, b"").status, 401);

    let nobody = c.plain("GET", "/box/b", &[], b"");
    assert_eq!(
        (nobody.status, nobody.code()),
        (401, "NoAuthenticationInformation")
    );
    assert!(!nobody.header("www-authenticate").is_empty());
    for (level, list) in [("blob", 404), ("container", 200)] {
        let set = c.call(
            "PUT",
            "/box?restype=container&comp=acl",
            &[("x-ms-blob-public-access", level)],
            b"",
        );
        assert_eq!(set.status, 200);
        assert_eq!(c.plain("GET", "/box/b", &[], b"").status, 200);
        assert_eq!(
            c.plain("GET", "/box?restype=container&comp=list", &[], b"")
                .status,
            list
        );
        assert_eq!(c.plain("DELETE", "/box/b", &[], b"").code(), "ResourceNotFound");
    }
}
