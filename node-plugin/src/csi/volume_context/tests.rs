//! Keys, secrets and mount options: every refusal names the field and what to write instead.

use std::collections::HashMap;
use std::time::Duration;

use blob_client::transport::failover::TransportMode;
use blob_fs::Profile;
use blob_fs::config::Ownership;

use super::*;

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn attributes(pairs: &[(&str, &str)]) -> Result<Attributes> {
    Attributes::parse(&map(pairs), Scope::Attributes)
}

fn class(pairs: &[(&str, &str)]) -> Result<Attributes> {
    Attributes::parse(&map(pairs), Scope::Class)
}

/// The refusal's reason and text.
fn refusal<T: std::fmt::Debug>(result: Result<T>) -> (Reason, String) {
    let error = result.unwrap_err();
    (error.reason, error.to_string())
}

#[test]
fn keys_are_case_insensitive() {
    let a = attributes(&[
        ("CONTAINERNAME", "photos"),
        ("storageaccount", "acct"),
        ("Transport", "HTTPS"),
    ])
    .unwrap();
    assert_eq!(a.container.as_deref(), Some("photos"));
    assert_eq!(a.account.as_deref(), Some("acct"));
    assert_eq!(a.transport, TransportMode::Https);
}

#[test]
fn colliding_spellings_are_refused() {
    let (reason, text) = refusal(attributes(&[("containerName", "a"), ("containername", "b")]));
    assert_eq!(reason, Reason::DuplicateKey);
    assert!(
        text.contains("containerName") && text.contains("containername"),
        "{text}"
    );
}

#[test]
fn an_unknown_key_names_itself_and_the_nearest() {
    let (reason, text) = refusal(attributes(&[("containrName", "a")]));
    assert_eq!(reason, Reason::UnknownKey);
    assert!(
        text.contains("\"containrName\"") && text.contains("\"containerName\""),
        "{text}"
    );
    let (_, text) = refusal(attributes(&[("qqqq", "a")]));
    assert!(
        text.contains("\"qqqq\"") && !text.contains("did you mean"),
        "{text}"
    );
}

#[test]
fn class_keys_do_not_belong_into_a_volume() {
    let (reason, text) = refusal(attributes(&[("onDelete", "retain")]));
    assert_eq!(reason, Reason::UnknownKey);
    assert!(text.contains("StorageClass"), "{text}");
    assert_eq!(
        class(&[("onDelete", "Retain")]).unwrap().on_delete,
        OnDelete::Retain
    );
}

#[test]
fn keys_of_kubelet_and_provisioner_are_taken() {
    let a = attributes(&[
        ("csi.storage.k8s.io/pod.name", "web-0"),
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/serviceAccount.tokens", "{}"),
        ("storage.kubernetes.io/csiProvisionerIdentity", "1-2-vsc"),
    ])
    .unwrap();
    assert!(a.ephemeral);
    assert!(
        !attributes(&[("csi.storage.k8s.io/ephemeral", "false")])
            .unwrap()
            .ephemeral
    );
}

#[test]
fn values_are_checked_and_named() {
    for (key, value, wanted) in [
        ("transport", "quick", "prefer, require, https"),
        (
            "profile",
            "fast",
            "general, streaming, smallfiles, readonly-shared",
        ),
        ("contentType", "autp", "did you mean \"auto\""),
        ("contentType", "text", "text/plain"),
        ("indexTags", "kepp", "keep, drop"),
        ("AzureStorageAuthType", "Kerberos", "WorkloadIdentity"),
        ("mountWithWorkloadIdentityToken", "yes", "true or false"),
        ("protocol", "smb", "fuse"),
        ("prefix", "a/../b", ".."),
        ("prefix", "a//b", "empty parts"),
    ] {
        let (reason, text) = refusal(attributes(&[(key, value)]));
        assert_eq!(reason, Reason::InvalidValue, "{text}");
        assert!(
            text.contains(key) && text.contains(value) && text.contains(wanted),
            "{text}"
        );
    }
}

#[test]
fn nfs_is_refused_with_a_hint() {
    for protocol in ["nfs", "AZNFS"] {
        let (reason, text) = refusal(attributes(&[("protocol", protocol)]));
        assert_eq!(reason, Reason::ProtocolNotSupported);
        assert!(
            text.contains(protocol) && text.contains("blob.csi.azure.com"),
            "{text}"
        );
    }
    attributes(&[("protocol", "fuse2")]).unwrap();
}

#[test]
fn what_is_not_there_yet_is_refused_by_name() {
    for (key, value) in [
        ("cacheMedium", "disk"),
        ("cacheSizeMB", "100"),
        ("isHnsEnabled", "true"),
    ] {
        let (reason, text) = refusal(attributes(&[(key, value)]));
        assert_eq!(reason, Reason::NotSupportedYet);
        assert!(text.contains(key), "{text}");
    }
    attributes(&[
        ("cacheMedium", "none"),
        ("cacheSizeMB", "100"),
        ("isHnsEnabled", "false"),
    ])
    .unwrap();
}

#[test]
fn prefixes_lose_their_outer_slashes() {
    assert_eq!(
        attributes(&[("prefix", "/a/b/")]).unwrap().prefix.as_deref(),
        Some("a/b")
    );
    assert_eq!(attributes(&[("prefix", "/")]).unwrap().prefix, None);
    assert_eq!(
        attributes(&[("profile", "streaming")]).unwrap().profile,
        Profile::Streaming
    );
}

#[test]
fn class_variables_are_replaced() {
    let class = class(&[
        ("containerName", "t-${pvc.metadata.namespace}"),
        ("prefix", "${pvc.metadata.name}/${pv.metadata.name}"),
        ("csi.storage.k8s.io/pvc/name", "data"),
        ("csi.storage.k8s.io/pvc/namespace", "team"),
        ("csi.storage.k8s.io/pv/name", "pvc-1"),
    ])
    .unwrap();
    assert_eq!(class.expanded_container().unwrap().as_deref(), Some("t-team"));
    assert_eq!(class.expanded_prefix().unwrap().as_deref(), Some("data/pvc-1"));
}

#[test]
fn a_variable_that_is_unknown_or_absent_is_named() {
    for (template, wanted) in [
        ("${pvc.metadata.nam}", "${pvc.metadata.nam}"),
        ("${pvc.metadata.name}", "--extra-create-metadata"),
        ("a-${pvc", "without"),
    ] {
        let class = class(&[("containerName", template)]).unwrap();
        let (reason, text) = refusal(class.expanded_container());
        assert_eq!(reason, Reason::InvalidValue);
        assert!(text.contains("containerName") && text.contains(wanted), "{text}");
    }
}

#[test]
fn secrets_take_aliases_and_never_print() {
    let secrets = Secrets::parse(&map(&[
        ("AccountName", "acct"),
        ("accountkey", "a2V5\n"),
        ("other", "x"),
    ]))
    .unwrap();
    assert_eq!(secrets.account.as_deref(), Some("acct"));
    assert_eq!(secrets.key.as_ref().unwrap().expose(), "a2V5");
    assert!(!format!("{secrets:?}").contains("a2V5"));
    assert!(!secrets.is_empty());
    assert!(Secrets::parse(&map(&[("other", "x")])).unwrap().is_empty());
    let sas = Secrets::parse(&map(&[("azurestorageaccountsastoken", "?sv=1&sig=2")])).unwrap();
    assert_eq!(sas.sas.unwrap().expose(), "sv=1&sig=2");
}

#[test]
fn an_alias_must_agree() {
    let both = map(&[("accountkey", "canary1"), ("azurestorageaccountkey", "canary2")]);
    let (reason, text) = refusal(Secrets::parse(&both));
    assert_eq!(reason, Reason::ConflictingFields);
    assert!(!text.contains("canary"), "{text}");
}

#[test]
fn a_missing_secret_names_the_misspelled_one() {
    let secrets = Secrets::parse(&map(&[("azurestorageacountkey", "canary")])).unwrap();
    let text = secrets.missing("azurestorageaccountkey", "Key").to_string();
    assert!(
        text.contains("azurestorageaccountkey") && text.contains("azurestorageacountkey"),
        "{text}"
    );
    assert!(!text.contains("canary"), "{text}");
}

#[test]
fn mount_options_and_blobfuse_spellings_mean_the_same() {
    let ours = MountOptions::parse(&[
        "ro",
        "uid=1000",
        "gid=2000",
        "umask=022",
        "attr_timeout=7",
        "allow_other",
    ])
    .unwrap();
    let blobfuse = MountOptions::parse(&[
        "--read-only=true",
        "-o uid=1000,gid=2000",
        "-o",
        "umask=0022",
        "--attr-timeout=7",
        "-o allow_other",
        "--allow-other",
    ])
    .unwrap();
    assert_eq!(ours, blobfuse);
    assert!(ours.read_only);
    assert_eq!(
        (ours.uid, ours.gid, ours.umask),
        (Some(1000), Some(2000), Some(0o022))
    );
    assert_eq!(ours.attr_timeout, Some(Duration::from_secs(7)));
}

#[test]
fn times_to_wait_have_units() {
    let timeout = |flag: &str| MountOptions::parse(&[flag]).unwrap().timeout;
    assert_eq!(timeout("ro"), None);
    for (flag, seconds) in [("timeout=60s", 60), ("timeout=2m", 120), ("--timeout=2", 2)] {
        let timeout = timeout(flag).unwrap();
        assert_eq!(timeout.whole(), Duration::from_secs(seconds), "{flag}");
    }
    let (_, text) = refusal(MountOptions::parse(&["timeout=2h"]));
    assert!(
        text.contains("timeout=2h should be a time from 1s to 1h"),
        "{text}"
    );
}

#[test]
fn parts_of_seconds_are_taken() {
    let parsed = |flag: &str| MountOptions::parse(&[flag]);
    for (text, millis) in [("0.5", 500), ("1.25", 1250), ("7", 7000), ("0", 0), (".5", 500)] {
        let wanted = Some(Duration::from_millis(millis));
        assert_eq!(
            parsed(&format!("attr_timeout={text}")).unwrap().attr_timeout,
            wanted
        );
        assert_eq!(
            parsed(&format!("-o entry_timeout={text}")).unwrap().entry_timeout,
            wanted
        );
        let absent = parsed(&format!("--negative-timeout={text}")).unwrap();
        assert_eq!(absent.negative_timeout, wanted);
    }
    for wrong in ["-1", "1e3", "inf", "NaN", "1.2.3", ".", "", "99999999999", "0,5"] {
        let (_, text) = refusal(parsed(&format!("attr_timeout={wrong}")));
        assert!(
            text.contains("number of seconds") || text.contains("\"5\""),
            "{wrong}: {text}"
        );
    }
}

#[test]
fn what_every_mount_is_may_be_asked_for() {
    let plain = MountOptions::default();
    for flags in [ALWAYS, &["-o rw,noatime", "--nosuid=true"]] {
        assert_eq!(MountOptions::parse(flags).unwrap(), plain);
    }
    let (reason, text) = refusal(MountOptions::parse(&["nosuid=false"]));
    assert_eq!(reason, Reason::InvalidValue);
    assert!(text.contains("every mount is so"), "{text}");
}

#[test]
fn what_is_asked_for_elsewhere_is_said() {
    for (option, instead) in [
        ("direct_io", "profile: streaming"),
        ("context=system_u:object_r:container_file_t:s0", "SELinux"),
        ("noexec", "securityContext"),
    ] {
        let (reason, text) = refusal(MountOptions::parse(&[option]));
        assert_eq!(reason, Reason::UnknownMountOption);
        assert!(text.contains(option) && text.contains(instead), "{text}");
    }
}

#[test]
fn other_mount_options_are_refused_by_name() {
    let (reason, text) = refusal(MountOptions::parse(&["--file-cache-timeout-in-seconds=120"]));
    assert_eq!(reason, Reason::UnknownMountOption);
    assert!(text.contains("--file-cache-timeout-in-seconds=120"), "{text}");
    let (_, text) = refusal(MountOptions::parse(&["umsk=022"]));
    assert!(text.contains("\"umask\""), "{text}");
    for wrong in [
        "uid=bob",
        "umask=9",
        "file_mode=1777",
        "uid",
        "attr_timeout=soon",
        "timeout=soon",
        "timeout=0",
        "timeout=900ms",
        "timeout=2h",
        "timeout",
        "ro=maybe",
        "allow_other=false",
    ] {
        let (reason, text) = refusal(MountOptions::parse(&[wrong]));
        assert_eq!(reason, Reason::InvalidValue, "{text}");
        assert!(text.contains(wrong.split('=').next().unwrap()), "{text}");
    }
}

#[test]
fn modes_follow_umask_and_group() {
    let modes = |flags: &[&str], grouped| MountOptions::parse(flags).unwrap().modes(grouped);
    assert_eq!(modes(&[], false), (0o666, 0o777));
    assert_eq!(modes(&[], true), (0o664, 0o2775));
    assert_eq!(modes(&["umask=027"], false), (0o640, 0o750));
    assert_eq!(
        modes(&["file_mode=0755", "dir_mode=0o700", "umask=022"], true),
        (0o755, 0o2700)
    );
}

#[test]
fn what_pods_make_belongs_to_whom_the_options_say() {
    let ownership = |flags: &[&str], group| MountOptions::parse(flags).unwrap().ownership(group);
    assert_eq!(ownership(&[], None), Ownership::default());
    assert_eq!(
        ownership(&["uid=1000", "gid=1000", "umask=007"], None),
        Ownership {
            uid: Some(1000),
            gid: Some(1000),
            file_umask: 0o007,
            dir_umask: 0o007,
            group_writes: true,
        }
    );
    let shared = ownership(&["gid=1"], Some(2000));
    assert_eq!(
        (shared.uid, shared.gid, shared.group_writes),
        (None, Some(2000), true)
    );
    let narrow = ownership(&["gid=1000", "file_mode=0640", "dir_mode=0750"], None);
    assert_eq!(
        (narrow.file_umask, narrow.dir_umask, narrow.group_writes),
        (0o026, 0o027, false)
    );
}
