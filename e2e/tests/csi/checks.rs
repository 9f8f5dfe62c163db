//! What a stage finds out before a pod does: prefixes that are no folders, rights that are missing, names
//! that cannot be shown.

use super::*;

impl World {
    /// Puts a folder's marker.
    fn put_folder(&self, blob: &str) {
        let view = self.backend.container("photos").unwrap();
        let marker = Metadata::from([("hdi_isfolder".to_owned(), "true".to_owned())]);
        view.write(blob, &b""[..], &marker).unwrap();
    }

    /// Stages a volume, looks at it, and takes it away again.
    fn staged<T>(&self, volume: &Volume, look: impl FnOnce() -> T) -> T {
        self.stage(volume.stage()).unwrap();
        let seen = look();
        self.unstage(volume.unstage()).unwrap();
        seen
    }
}

fn read_only(volume: &Volume) -> NodeStageVolumeRequest {
    NodeStageVolumeRequest {
        volume_capability: capability(Mode::MultiNodeReaderOnly),
        ..volume.stage()
    }
}

#[test]
fn a_prefix_that_is_a_file_is_refused() {
    let world = World::new();
    world.put("photos", "album");
    world.put("photos", "album-2/a.jpg");
    let volume = world.volume(&[("prefix", "album")]);
    for request in [volume.stage(), read_only(&volume)] {
        refused(
            world.stage(request),
            Code::InvalidArgument,
            "PrefixNotDirectory",
            &["prefix", "album"],
        );
    }
    assert_eq!(mounts(&volume.staging), 0);
    // A folder of the same name is shown instead of the file.
    world.put("photos", "album/a.jpg");
    let bytes = world.staged(&volume, || std::fs::read(volume.staging.join("a.jpg")).unwrap());
    assert_eq!(bytes, b"hello");
    // Nor is a folder's marker a file.
    world.put_folder("empty");
    let empty = world.volume(&[("prefix", "empty")]);
    assert_eq!(
        world.staged(&empty, || std::fs::read_dir(&empty.staging).unwrap().count()),
        0
    );
}

#[test]
fn a_prefix_of_a_read_only_volume_holds_something() {
    let world = World::new();
    world.put("photos", "album/a.jpg");
    world.put_folder("empty");
    world.put_folder("slash/");
    let misspelled = world.volume(&[("prefix", "albun")]);
    let by_option = {
        let mut request = misspelled.stage();
        request.volume_capability = Some(mount_capability(&["ro"]));
        request
    };
    for request in [read_only(&misspelled), by_option] {
        refused(
            world.stage(request),
            Code::NotFound,
            "PrefixNotFound",
            &["prefix", "albun", "photos"],
        );
    }
    for prefix in ["album", "empty", "slash"] {
        let volume = world.volume(&[("prefix", prefix)]);
        world.stage(read_only(&volume)).unwrap();
        world.unstage(volume.unstage()).unwrap();
    }
    // Who may write makes it.
    let entries = world.staged(&misspelled, || {
        std::fs::read_dir(&misspelled.staging).unwrap().count()
    });
    assert_eq!(entries, 0);
}

/// A volume whose Secret holds a SAS of these rights.
fn with_rights(world: &World, rights: &str) -> Volume {
    let signer = AccountKey::new(DEV_ACCOUNT, DEV_KEY).unwrap();
    let sas = signer.container_sas("photos", &SasOptions::new(rights, Duration::from_secs(3600)));
    let mut volume = world.volume(&[]);
    volume.secrets = HashMap::from([("azurestorageaccountsastoken".into(), sas)]);
    volume
}

#[test]
fn a_volume_that_pods_write_to_needs_the_right() {
    let world = World::new();
    world.put("photos", "a.jpg");
    for rights in ["rl", "rcl"] {
        let volume = with_rights(&world, rights);
        let refusal = world.stage(volume.stage());
        refused(
            refusal,
            Code::PermissionDenied,
            "AccessDenied",
            &["photos", "write (w)", "ReadOnlyMany"],
        );
        assert_eq!(mounts(&volume.staging), 0);
        world.stage(read_only(&volume)).unwrap();
        assert_eq!(std::fs::read(volume.staging.join("a.jpg")).unwrap(), b"hello");
        let error = std::fs::write(volume.staging.join("b.jpg"), "x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        world.unstage(volume.unstage()).unwrap();
    }
    let volume = with_rights(&world, "racwdl");
    world.staged(&volume, || {
        std::fs::write(volume.staging.join("b.jpg"), "x").unwrap()
    });
    // Asking leaves nothing behind.
    let view = world.backend.container("photos").unwrap();
    let names: Vec<String> = view.blobs().unwrap().into_keys().collect();
    assert_eq!(names, ["a.jpg", "b.jpg"]);
}

#[test]
fn names_that_cannot_be_shown_are_told() {
    let world = World::new();
    for blob in ["a.jpg", "d//x", "d/y.", "e", "e/f"] {
        world.put("photos", blob);
    }
    let volume = world.volume(&[]);
    world.stage(volume.stage()).unwrap();
    world.publish(volume.publish()).unwrap();
    let condition = wait_for("the volume to be counted", PATIENCE, || {
        let condition = world.stats(&volume, &volume.target)?.volume_condition.unwrap();
        Ok((!condition.message.contains("not counted yet")).then_some(condition))
    })
    .unwrap();
    assert!(!condition.abnormal, "{condition:?}");
    for part in ["3 blobs", "not shown", "\"d//x\""] {
        assert!(
            condition.message.contains(part),
            "no {part} in {:?}",
            condition.message
        );
    }
    world.unpublish(volume.unpublish()).unwrap();
    world.unstage(volume.unstage()).unwrap();
}

#[test]
fn a_sas_is_taken_as_people_paste_it() {
    let world = World::new();
    world.put("photos", "a.jpg");
    let signer = AccountKey::new(DEV_ACCOUNT, DEV_KEY).unwrap();
    let sas = signer.container_sas("photos", &SasOptions::new("racwdl", Duration::from_secs(3600)));
    let url = format!("{}/photos?{sas}", world.backend.endpoint());
    let half = sas.len() / 2;
    for pasted in [
        sas.clone(),
        format!("?{sas}"),
        url.clone(),
        format!("\"{sas}\"\n"),
        format!("'{url}'\r\n"),
        sas.replace('&', "&amp;"),
        format!("{}\n{}", &sas[..half], &sas[half..]),
        format!(
            "BlobEndpoint={};SharedAccessSignature={sas}",
            world.backend.endpoint()
        ),
    ] {
        let mut volume = world.volume(&[]);
        volume.secrets = HashMap::from([("azurestorageaccountsastoken".into(), pasted.clone())]);
        world
            .stage(volume.stage())
            .unwrap_or_else(|status| panic!("{pasted:?}: {}", status.message()));
        assert_eq!(std::fs::read(volume.staging.join("a.jpg")).unwrap(), b"hello");
        world.unstage(volume.unstage()).unwrap();
    }
}

#[test]
fn a_sas_that_cannot_do_says_why() {
    let world = World::new();
    let signer = AccountKey::new(DEV_ACCOUNT, DEV_KEY).unwrap();
    let hour = Duration::from_secs(3600);
    let now = std::time::SystemTime::now();
    let mut tomorrow = SasOptions::new("racwdl", 48 * hour);
    tomorrow.starts = Some(now + 24 * hour);
    let plain = SasOptions::new("racwdl", hour);
    for (sas, reasons, words) in [
        (
            signer.container_sas("photos", &tomorrow),
            "AuthenticationFailed",
            "begins at",
        ),
        (signer.blob_sas("photos", "a.jpg", &plain), "InvalidValue", "sr=c"),
        (signer.account_sas("o", &plain), "InvalidValue", "srt="),
        ("sv=2021-12-02&sr=c&sp=rl".to_owned(), "InvalidValue", "sig="),
    ] {
        let mut volume = world.volume(&[]);
        volume.secrets = HashMap::from([("azurestorageaccountsastoken".into(), sas.clone())]);
        let status = world.stage(volume.stage()).unwrap_err();
        let text = status.message();
        assert!(
            text.ends_with(&format!("[{reasons}]")) && text.contains(words),
            "{text}"
        );
        let signature = sas.split("sig=").nth(1).filter(|signature| !signature.is_empty());
        assert!(
            signature.is_none_or(|signature| !text.contains(signature)),
            "{text}"
        );
        assert_eq!(mounts(&volume.staging), 0);
    }
}

/// What the service says of a blob.
fn content_type(world: &World, blob: &str) -> String {
    let view = world.backend.container("photos").unwrap();
    let any = blob_client::Condition::none();
    let head = runtime().block_on(view.client().head(blob, &any));
    head.unwrap().stored.content_type().to_owned()
}

#[test]
fn new_files_have_the_content_type_that_the_volume_says() {
    let world = World::new();
    let octets = "application/octet-stream";
    for (said, html, other) in [
        ("", "text/html", octets),
        ("none", octets, octets),
        ("text/x-log", "text/x-log", "text/x-log"),
    ] {
        let volume = world.volume(&[("contentType", said)]);
        world.staged(&volume, || {
            for (name, wanted) in [("a.html", html), ("b", other)] {
                std::fs::write(volume.staging.join(name), "x").unwrap();
                assert_eq!(content_type(&world, name), wanted, "{said:?}: {name}");
                std::fs::remove_file(volume.staging.join(name)).unwrap();
            }
        });
    }
    let misspelled = world.volume(&[("contentType", "autp")]);
    refused(
        world.stage(misspelled.stage()),
        Code::InvalidArgument,
        "InvalidValue",
        &["contentType", "auto"],
    );
}

/// Gives a blob an index tag.
fn tag(world: &World, blob: &str) {
    let signer = AccountKey::new(DEV_ACCOUNT, DEV_KEY).unwrap();
    let sas = signer.container_sas("photos", &SasOptions::new("rwt", Duration::from_secs(3600)));
    let tags = "<Tags><TagSet><Tag><Key>project</Key><Value>one</Value></Tag></TagSet></Tags>";
    let request = http::Request::put(format!("/{DEV_ACCOUNT}/photos/{blob}?comp=tags&{sas}"))
        .header("host", "store")
        .header("x-ms-version", "2021-12-02")
        .header("content-length", tags.len())
        .body(bytes::Bytes::from_static(tags.as_bytes()))
        .unwrap();
    let answer = world.backend.store().unwrap().execute(request);
    assert!(answer.status().is_success(), "{answer:?}");
}

#[test]
fn tags_that_may_not_be_read_are_lost_only_where_the_volume_says_so() {
    let world = World::new();
    for (said, written) in [("", false), ("keep", false), ("drop", true)] {
        world.put("photos", "f");
        tag(&world, "f");
        let mut volume = with_rights(&world, "racwdl");
        volume.context.insert("indexTags".to_owned(), said.to_owned());
        world.stage(volume.stage()).unwrap();
        let at = volume.staging.join("f");
        let append = || std::fs::File::options().append(true).open(&at);
        let stored = || world.backend.container("photos").unwrap().read("f").unwrap();
        if written {
            append().unwrap();
            std::fs::write(&at, "changed").unwrap();
            assert_eq!(stored(), b"changed");
        } else {
            // By open: a shell does not hear what close says.
            for opened in [append(), std::fs::File::create(&at), append()] {
                let error = opened.unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EACCES), "{said:?}");
            }
            assert_eq!(stored(), b"hello", "{said:?}");
        }
        world.unstage(volume.unstage()).unwrap();
        assert_eq!(mounts(&volume.staging), 0);
    }
}

#[test]
fn an_account_with_a_hierarchical_namespace_is_refused() {
    let world = World::new();
    let volume = world.volume(&[]);
    world.staged(&volume, || ());
    let store = world.backend.store().unwrap();
    store.configure(|account| account.hierarchical = true);
    refused(
        world.stage(volume.stage()),
        Code::InvalidArgument,
        "NotSupportedYet",
        &["hierarchical namespace", DEV_ACCOUNT],
    );
    assert_eq!(mounts(&volume.staging), 0);
}
