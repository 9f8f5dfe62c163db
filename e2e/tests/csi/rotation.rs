//! Keys, SAS, client secrets and tokens are replaced while programs write and read, and no program hears of
//! it.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use base64::Engine as _;
use e2e::identity::{Identity, TokenServer};
use e2e::store::WhichKey;

use super::*;

/// Programs that write, read, rename and list until they are dropped.
struct Load {
    stop: Arc<AtomicBool>,
    rounds: Vec<Arc<AtomicU64>>,
    failed: Arc<Mutex<Option<String>>>,
    programs: Vec<JoinHandle<()>>,
}

/// One program's round; every file is its own.
fn round(folder: &Path, program: usize, number: u64) -> std::io::Result<()> {
    let at = |name: &str| folder.join(format!("{program}-{name}"));
    let content = format!("{program}: {number}\n").repeat(200);
    let mut file = std::fs::File::create(at("new"))?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(at("new"), at("file"))?;
    let read = std::fs::read_to_string(at("file"))?;
    if read != content {
        return Err(std::io::Error::other(format!(
            "{} bytes of {}",
            read.len(),
            content.len()
        )));
    }
    std::fs::read_dir(folder)?.count();
    Ok(())
}

impl Load {
    fn on(folder: &Path) -> Self {
        let (stop, failed) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let rounds: Vec<Arc<AtomicU64>> = (0..3).map(|_| Arc::default()).collect();
        let programs = rounds.iter().cloned().enumerate().map(|(program, rounds)| {
            let (stop, failed, folder): (_, Arc<Mutex<_>>, PathBuf) =
                (Arc::clone(&stop), Arc::clone(&failed), folder.to_owned());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let number = rounds.load(Ordering::Relaxed);
                    if let Err(error) = round(&folder, program, number) {
                        *failed.lock().unwrap() = Some(format!("program {program}: {error}"));
                        return;
                    }
                    rounds.store(number + 1, Ordering::Relaxed);
                }
            })
        });
        let programs = programs.collect();
        Self {
            stop,
            rounds,
            failed,
            programs,
        }
    }

    fn check(&self, what: &str) {
        if let Some(error) = &*self.failed.lock().unwrap() {
            panic!("{what}: {error}");
        }
    }

    /// Waits until every program has begun and ended rounds from now on.
    #[track_caller]
    fn goes_on(&self, after: &str) {
        let now = || self.rounds.iter().map(|rounds| rounds.load(Ordering::Relaxed));
        let before: Vec<u64> = now().collect();
        wait_for(after, PATIENCE, || {
            self.check(after);
            let all = now().zip(&before).all(|(now, before)| now >= before + 3);
            Ok(all.then_some(()))
        })
        .unwrap();
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for program in self.programs.drain(..) {
            program.join().unwrap();
        }
        self.check("at the end");
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A volume that pods use, with no attribute believed without asking.
struct Used {
    world: World,
    volume: Volume,
}

impl Used {
    fn new(world: World, more: &[(&str, &str)], secrets: HashMap<String, String>) -> Self {
        let mut volume = world.volume(more);
        volume.secrets = secrets;
        world.backend.store().unwrap().record_requests(true);
        let used = Self { world, volume };
        let mut request = used.volume.stage();
        request.volume_capability = Self::capability();
        used.world.stage(request).unwrap();
        used.published_with(used.volume.secrets.clone());
        used
    }

    fn capability() -> Option<VolumeCapability> {
        Some(mount_capability(&["attr_timeout=0", "entry_timeout=0"]))
    }

    /// As kubelet calls again, with what the Secret holds now.
    fn published_with(&self, secrets: HashMap<String, String>) {
        let mut request = self.volume.publish();
        request.volume_capability = Self::capability();
        request.secrets = secrets;
        self.world.publish(request).unwrap();
    }

    fn store(&self) -> &e2e::store::BlobStore {
        self.world.backend.store().unwrap()
    }

    /// Waits until the service has refused something more than before.
    fn until_refused(&self, before: usize) {
        wait_for("a refusal", PATIENCE, || {
            Ok((refusals(self.store()) > before).then_some(()))
        })
        .unwrap();
    }

    fn end(self) {
        self.world.unpublish(self.volume.unpublish()).unwrap();
        self.world.unstage(self.volume.unstage()).unwrap();
    }
}

/// Requests that were refused for their credentials.
fn refusals(store: &e2e::store::BlobStore) -> usize {
    let log = store.requests();
    log.iter()
        .filter(|asked| matches!(asked.status, 401 | 403))
        .count()
}

fn a_key(seed: u8) -> String {
    base64::engine::general_purpose::STANDARD.encode([seed; 64])
}

fn with_key(key: &str) -> HashMap<String, String> {
    let mut all = secrets();
    all.insert("azurestorageaccountkey".to_owned(), key.to_owned());
    all
}

#[test]
fn the_keys_of_an_account_are_rotated_under_load() {
    let used = Used::new(World::new(), &[], secrets());
    let load = Load::on(&used.volume.target);
    load.goes_on("with the first key");
    let (second, third, fourth, fifth) = (a_key(2), a_key(3), a_key(4), a_key(5));
    let renew = |which, key: &str| used.store().renew_key(which, key).unwrap();
    renew(WhichKey::Key2, &second);
    used.published_with(with_key(&second));
    renew(WhichKey::Key1, &third);
    load.goes_on("with the second key");
    used.published_with(with_key(&third));
    renew(WhichKey::Key2, &fourth);
    load.goes_on("with the first key, made anew");
    // A wrong one, as often as kubelet brings it, and what is no key at all.
    for _ in 0..3 {
        used.published_with(with_key(&a_key(99)));
        used.published_with(with_key("no key"));
        load.goes_on("with a wrong key in the Secret");
    }
    // The second key is known from before; it comes back when the first one ends.
    used.published_with(with_key(&fourth));
    renew(WhichKey::Key1, &a_key(6));
    load.goes_on("with the second key again");
    // In the wrong order: the one in use ends before the newer one is there.
    let before = refusals(used.store());
    renew(WhichKey::Key2, &fifth);
    used.until_refused(before);
    used.published_with(with_key(&fifth));
    load.goes_on("with a key that came late");
    load.end();
    used.end();
}

#[test]
fn a_sas_is_replaced_under_load() {
    let world = World::new();
    world
        .backend
        .store()
        .unwrap()
        .renew_key(WhichKey::Key2, &a_key(2))
        .unwrap();
    let sas = |key: &str, seconds: u64| {
        let signer = AccountKey::new(DEV_ACCOUNT, key).unwrap();
        let options = SasOptions::new("racwdl", Duration::from_secs(seconds));
        let sas = signer.container_sas("photos", &options);
        let secrets = HashMap::from([("azurestorageaccountsastoken".to_owned(), sas)]);
        (secrets, options.expires)
    };
    let (short, end) = sas(DEV_KEY, 25);
    let used = Used::new(world, &[], short);
    let load = Load::on(&used.volume.target);
    load.goes_on("with the first SAS");
    used.published_with(sas(DEV_KEY, 3600).0);
    wait_for("the end of the first SAS", PATIENCE, || {
        Ok((std::time::SystemTime::now() > end).then_some(()))
    })
    .unwrap();
    load.goes_on("after its end");
    // Less than what is in use: not taken.
    let signer = AccountKey::new(DEV_ACCOUNT, DEV_KEY).unwrap();
    let reads = signer.container_sas("photos", &SasOptions::new("rl", Duration::from_secs(3600)));
    used.published_with(HashMap::from([("azurestorageaccountsastoken".to_owned(), reads)]));
    load.goes_on("with one that may only read in the Secret");
    // The key that it is signed with.
    used.published_with(sas(&a_key(2), 3600).0);
    used.store().renew_key(WhichKey::Key1, &a_key(3)).unwrap();
    load.goes_on("with one of the other key");
    load.end();
    used.end();
}

const TENANT: &str = "00000000-0000-0000-0000-00000000000a";
const APPLICATION: &str = "00000000-0000-0000-0000-00000000000b";

fn identity(secret: &str) -> Identity {
    Identity {
        tenant: TENANT.to_owned(),
        client_id: APPLICATION.to_owned(),
        resource_id: None,
        managed: true,
        secret: Some(secret.to_owned()),
        subject: None,
    }
}

#[test]
fn a_client_secret_and_the_signing_of_tokens_are_rotated_under_load() {
    let world = World::new();
    let store = Arc::clone(world.backend.store().unwrap());
    let address = "127.0.0.1:0".parse().unwrap();
    let tokens = TokenServer::start(store, vec![identity("first")], address, None).unwrap();
    let attributes = [
        ("AzureStorageAuthType", "SPN"),
        ("AzureStorageSPNTenantID", TENANT),
        ("AzureStorageSPNClientID", APPLICATION),
        ("AzureStorageAADEndpoint", &*tokens.authority()),
        ("storageAccount", DEV_ACCOUNT),
    ];
    let secret = |text: &str| HashMap::from([("azurestoragespnclientsecret".to_owned(), text.to_owned())]);
    let used = Used::new(world, &attributes, secret("first"));
    let load = Load::on(&used.volume.target);
    load.goes_on("with the first secret");
    // In the wrong order: neither a token nor the secret is good any more.
    tokens.change(|all| *all = vec![identity("second")]);
    let before = refusals(used.store());
    used.store().revoke_tokens();
    used.until_refused(before);
    used.published_with(secret("wrong"));
    used.published_with(secret("second"));
    load.goes_on("with the second secret");
    used.store().revoke_tokens();
    load.goes_on("with tokens of another signature");
    load.end();
    used.end();
}

#[test]
fn tokens_of_a_managed_identity_that_are_signed_anew_are_fetched_anew_under_load() {
    let world = World::new();
    let store = Arc::clone(world.backend.store().unwrap());
    let address = "127.0.0.1:0".parse().unwrap();
    let tokens = TokenServer::start(store, vec![identity("none")], address, None).unwrap();
    let attributes = [
        ("AzureStorageAuthType", "MSI"),
        ("MSIEndpoint", &*tokens.metadata()),
        ("storageAccount", DEV_ACCOUNT),
    ];
    let used = Used::new(world, &attributes, HashMap::new());
    let load = Load::on(&used.volume.target);
    load.goes_on("with the first token");
    used.store().revoke_tokens();
    load.goes_on("with the second");
    load.end();
    used.end();
}
