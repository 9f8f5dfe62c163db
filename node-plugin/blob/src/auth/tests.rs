//! Signatures against known values: strings from the REST reference, HMACs computed with another
//! implementation.

use super::*;

const DEV_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

fn key(account: &str) -> SharedKey {
    SharedKey::new(account, DEV_KEY).unwrap()
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_str(v).unwrap()))
        .collect()
}

fn pairs(query: &[(&str, &str)]) -> Vec<(String, String)> {
    query
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

#[test]
fn the_example_of_the_reference() {
    let query = pairs(&[("restype", "container"), ("comp", "metadata"), ("timeout", "20")]);
    let signed = key("myaccount").authorization(&ToSign {
        method: &Method::GET,
        path: "/mycontainer",
        query: &query,
        headers: &headers(&[
            ("x-ms-date", "Fri, 26 Jun 2015 23:39:12 GMT"),
            ("x-ms-version", "2015-02-21"),
        ]),
    });
    assert_eq!(
        signed,
        "SharedKey myaccount:1u9lui2jDxj0+fpbHjQ5m5NnastJRSYM+PSmfi8TXx4="
    );
}

#[test]
fn every_standard_header_has_its_line_and_the_rest_is_sorted() {
    let text = key("acct").string_to_sign(&ToSign {
        method: &Method::PUT,
        path: "/acct/c/a%20b",
        query: &pairs(&[("comp", "block"), ("BlockId", "a+/=")]),
        headers: &headers(&[
            ("content-length", "0"),
            ("content-type", "text/plain"),
            ("if-match", "\"0x1\""),
            ("x-ms-meta-a1", " v "),
            ("x-ms-meta-a_b", "w"),
            ("x-ms-lease-id", "l"),
            ("x-ms-blob-type", "BlockBlob"),
            ("accept", "ignored"),
        ]),
    });
    assert_eq!(
        text,
        "PUT\n\n\n\n\ntext/plain\n\n\n\"0x1\"\n\n\n\nx-ms-blob-type:BlockBlob\nx-ms-lease-id:l\n\
         x-ms-meta-a_b:w\nx-ms-meta-a1:v\n/acct/acct/c/a%20b\nblockid:a+/=\ncomp:block"
    );
}

/// The reference speaks of replacing them by one; its own client libraries sign them as they are sent.
#[test]
fn blanks_within_a_value_are_signed_as_they_are() {
    let request = ToSign {
        method: &http::Method::PUT,
        path: "/c/b",
        query: &[],
        headers: &headers(&[("x-ms-meta-note", " two  blanks\tand a tab ")]),
    };
    let text = key("account").string_to_sign(&request);
    assert!(
        text.contains("\nx-ms-meta-note:two  blanks\tand a tab\n"),
        "{text:?}"
    );
}

#[test]
fn a_length_that_is_not_zero_is_signed() {
    let text = key("a").string_to_sign(&ToSign {
        method: &Method::PUT,
        path: "/",
        query: &[],
        headers: &headers(&[("content-length", "12")]),
    });
    assert!(text.starts_with("PUT\n\n\n12\n"), "{text:?}");
}

#[test]
fn our_own_sas() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let sas = sas::read_one_blob(
        &key("devstoreaccount1"),
        "c",
        "d/a b%",
        now,
        Duration::from_secs(900),
    )
    .unwrap();
    assert_eq!(
        sas,
        "sv=2021-12-02&st=2023-11-14T22%3A08%3A20Z&se=2023-11-14T22%3A28%3A20Z&sr=b&sp=r&sig=bA6UmlW\
        6A98Q%2FYvJoN9XbYHN%2FawH38VxS4QxoSXF9Y4%3D"
    );
}

#[test]
fn keys_and_sas_are_checked_and_never_shown() {
    let error = SharedKey::new("a", "not base64!").unwrap_err().to_string();
    assert!(error.starts_with("azurestorageaccountkey"), "{error}");
    let error = SharedKey::new("", DEV_KEY).unwrap_err().to_string();
    assert!(error.starts_with("storageAccount"), "{error}");
    let endless = format!("sv=1&sig={}", "A".repeat(9000));
    for bad in ["", "?", "sv=1&se=2", "sv=1&sig=a b", "sv=1&sig=x#y", &endless] {
        let error = sas::parse(bad).unwrap_err().to_string();
        assert!(error.starts_with("azurestorageaccountsastoken"), "{bad}: {error}");
    }
    assert_eq!(sas::parse(" ?sv=1&sig=a%3D\n").unwrap(), "sv=1&sig=a%3D");
    let shown = format!(
        "{:?} {:?}",
        Signer::new(&Credentials::SharedKey {
            account: "a".into(),
            key: DEV_KEY.to_owned().into(),
        }),
        Signer::new(&Credentials::Sas("sig=topsecret".to_owned().into())),
    );
    assert!(!shown.contains("Eby8") && !shown.contains("topsecret"), "{shown}");
}

#[test]
fn a_sas_is_understood_as_people_paste_it() {
    let whole = "sv=2021-12-02&sr=c&sp=rl&se=2099-01-01T00%3A00%3A00Z&sig=a%2Bb%2Fc%3D";
    for pasted in [
        whole.to_owned(),
        format!("?{whole}"),
        format!(" ?{whole}\n"),
        format!("\"{whole}\""),
        format!("'?{whole}'\r\n"),
        format!("https://acct.blob.core.windows.net/data?{whole}"),
        format!("\"https://acct.blob.core.windows.net/data/?{whole}\"\n"),
        format!("BlobEndpoint=https://acct.blob.core.windows.net/;SharedAccessSignature={whole}"),
        format!("BlobEndpoint=https://a.blob.x/;SharedAccessSignature=?{whole};QueueEndpoint=https://a.q.x/"),
        whole.replace('&', "&amp;"),
        whole.replace('&', "\\u0026"),
        whole.replace("&se", "\n&se"),
        whole.replace("2099", "20\r\n  99"),
        format!("&{whole}&"),
        // Decoded, or encoded once more, on the way.
        whole.replace("a%2Bb%2Fc%3D", "a+b/c="),
        whole.replace("a%2Bb%2Fc%3D", "a%252Bb%252Fc%253D"),
        encode_query(whole),
    ] {
        assert_eq!(sas::parse(&pasted).unwrap(), whole, "{pasted:?}");
    }
}

#[test]
fn a_sas_that_can_serve_no_volume_is_refused_with_the_reason() {
    let signer = |sas: &str| Signer::new(&Credentials::Sas(sas.to_owned().into()));
    for (sas, why) in [
        ("sv=1&sr=b&sig=x", "one blob"),
        ("sv=1&sr=s&sig=x", "Azure Files"),
        ("sv=1&ss=qt&srt=sco&sig=x", "ss=b"),
        ("sv=1&ss=b&srt=o&sig=x", "srt=co"),
    ] {
        let error = signer(sas).unwrap().check_reach().unwrap_err().to_string();
        assert!(error.contains(why), "{sas}: {error}");
    }
    for (sas, why) in [
        ("https://acct.blob.core.windows.net/data", "sig="),
        ("sv=1&se=2 3&sig=x", "no query string has"),
    ] {
        let error = signer(sas).unwrap_err().to_string();
        assert!(error.contains(why), "{sas}: {error}");
    }
    for good in [
        "ss=bfqt&srt=sco&sp=rwdl&sig=x",
        "sv=1&sr=c&si=policy&sig=x",
        "sr=d&sdd=1&sig=x",
    ] {
        assert_eq!(sas::parse(good).unwrap(), good);
        signer(good).unwrap().check_reach().unwrap();
    }
}

#[test]
fn a_sas_that_is_not_accepted_is_explained() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    for (sas, code, why) in [
        (
            "st=2023-11-15&sig=x",
            "AuthenticationFailed",
            "begins at 2023-11-15",
        ),
        (
            "se=2023-11-14&sig=x",
            "AuthenticationFailed",
            "expired at 2023-11-14",
        ),
        (
            "se=2099-01-01&ske=2023-11-14&skoid=o&sig=x",
            "AuthenticationFailed",
            "user delegation key",
        ),
        ("sip=10.0.0.1&sig=x", "AuthorizationSourceIPMismatch", "sip="),
        ("spr=https&sig=x", "AuthorizationProtocolMismatch", "https only"),
        (
            "si=mine&sig=x",
            "AuthorizationPermissionMismatch",
            "policy \"mine\"",
        ),
        ("si=mine&sig=x", "AuthenticationFailed", "policy \"mine\""),
        ("sp=r&sig=x", "AuthorizationPermissionMismatch", "allows \"r\""),
        ("sp=r&sig=x", "AuthenticationFailed", "copied whole"),
    ] {
        let signer = Signer::new(&Credentials::Sas(sas.to_owned().into())).unwrap();
        let hint = signer.hint(code, Some(now), now);
        assert!(hint.contains(why), "{sas} {code}: {hint}");
    }
}

#[test]
fn expiry_is_understood_in_all_its_spellings() {
    let at = |end: &str, now: u64| {
        sas::expired(
            &format!("se={end}&sig=x"),
            SystemTime::UNIX_EPOCH + Duration::from_secs(now),
        )
        .is_some()
    };
    for end in [
        "2023-11-14T22:13:20Z",
        "2023-11-14T22%3A13%3A20Z",
        "2023-11-14T22:13:20.000Z",
    ] {
        assert!(at(end, 1_700_000_000), "{end}");
        assert!(!at(end, 1_699_999_999), "{end}");
    }
    assert!(at("2023-11-14", 1_700_000_000));
    assert!(at("2023-11-14T22:13Z", 1_700_000_000));
    assert!(!at("2023-11-15", 1_700_000_000));
    assert!(!at("nonsense", u64::from(u32::MAX)));
}

#[test]
fn hints_name_the_field() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let hint = |credentials: &Credentials, code: &str, server: SystemTime| {
        Signer::new(credentials).unwrap().hint(code, Some(server), now)
    };
    let shared = Credentials::SharedKey {
        account: "acct".into(),
        key: DEV_KEY.to_owned().into(),
    };
    let sas = Credentials::Sas("sp=rl&se=2099-01-01T00:00:00Z&sig=x".to_owned().into());
    assert!(hint(&shared, "AuthenticationFailed", now).contains("azurestorageaccountkey"));
    let skewed = hint(&shared, "AuthenticationFailed", now + Duration::from_secs(3600));
    assert!(skewed.contains("clock is 3600 s"), "{skewed}");
    assert!(hint(&shared, "KeyBasedAuthenticationNotPermitted", now).contains("AzureStorageAuthType"));
    let missing = hint(&sas, "AuthorizationPermissionMismatch", now);
    assert!(
        missing.contains("\"rl\"") && missing.contains("azurestorageaccountsastoken"),
        "{missing}"
    );
    assert!(hint(&Credentials::Anonymous, "NoAuthenticationInformation", now).contains("not public"));
    assert!(hint(&shared, "AuthorizationFailure", now).contains("firewall"));
}
