//! Newer credentials out of Secrets and calls, and what the cluster is told, against an account that accepts
//! some SAS.

use std::collections::BTreeSet;
use std::sync::Mutex;

use blob_client::transport::failover::Paths;
use blob_client::transport::failover::TransportMode;
use blob_client::{ListOptions, Patience};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use vsc_driver::buffer::Arena;

use super::super::tests::{World, map, world};
use super::*;
use crate::csi::volume_context::{Keeping, Scope};

const EMPTY: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults><Blobs /><NextMarker />\
                     </EnumerationResults>";

/// An account on a port.
struct Service {
    server: String,
    accepts: Arc<Mutex<BTreeSet<String>>>,
    /// One that may only list.
    lesser: &'static str,
}

impl Service {
    async fn that_accepts(these: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}/account", listener.local_addr().unwrap());
        let accepts = Arc::new(Mutex::default());
        let lesser = "lesser";
        let service = Self {
            server,
            accepts,
            lesser,
        };
        service.accept(these);
        let accepts = Arc::clone(&service.accepts);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&accepts), lesser));
            }
        });
        service
    }

    fn accept(&self, these: &[&str]) {
        *self.accepts.lock().unwrap() = these.iter().map(|one| (*one).to_owned()).collect();
    }
}

/// Answers one request: a listing is empty, no blob is there, and strangers are refused.
async fn answer(
    stream: TcpStream,
    accepts: Arc<Mutex<BTreeSet<String>>>,
    lesser: &str,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut first = String::new();
    stream.read_line(&mut first).await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 2 {
        line.clear();
    }
    let signature = first
        .split("sig=")
        .nth(1)
        .and_then(|rest| rest.split([' ', '&']).next());
    let signature = signature.unwrap_or_default();
    let known = accepts.lock().unwrap().contains(signature);
    let (status, code, body) = match (known, first.contains("comp=list")) {
        (false, _) => ("403 Forbidden", "AuthenticationFailed", ""),
        (true, true) => ("200 OK", "", EMPTY),
        (true, false) if signature == lesser => ("403 Forbidden", "AuthorizationPermissionMismatch", ""),
        (true, false) => ("404 Not Found", "BlobNotFound", ""),
    };
    let code = match code {
        "" => String::new(),
        code => format!("x-ms-error-code: {code}\r\n"),
    };
    let text = format!(
        "HTTP/1.1 {status}\r\nx-ms-request-id: id\r\n{code}content-length: {}\r\nconnection: close\r\n\
         \r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await
}

fn sas(signature: &str) -> Credentials {
    Credentials::Sas(format!("sv=1&sig={signature}").into())
}

fn secret(signature: &str) -> HashMap<String, String> {
    map(&[("azurestorageaccountsastoken", &format!("sv=1&sig={signature}"))])
}

fn at() -> VolumeAt {
    VolumeAt {
        handle: "h".into(),
        path: "/nonexistent/globalmount".into(),
    }
}

/// A mount of volume `h` as its first credential has reached it.
fn reached(service: &Service, credentials: Credentials) -> (Attributes, Reached) {
    let pairs = [
        ("server", service.server.as_str()),
        ("secretName", "key"),
        ("secretNamespace", "team"),
    ];
    let attributes = Attributes::parse(&map(&pairs), Scope::Attributes).unwrap();
    let account = Account::resolve(&attributes, &Secrets::default()).unwrap();
    let arena = Arena::new(64 << 20).unwrap();
    let paths = Paths::new(None, arena.clone(), tokio::runtime::Handle::current());
    let connector = connect::Connector::new(paths, arena);
    let (mode, keeping) = (TransportMode::Https, Keeping::default());
    let client = connector.client(&account, credentials.clone(), mode, &keeping, Patience::default());
    let reached = Reached {
        account,
        container: client.unwrap().container("photos").unwrap(),
        prefix: String::new(),
        read_only: false,
        kind: CredentialKind::of(&credentials),
        rights: Rights::ALL,
    };
    (attributes, reached)
}

fn put_secret(world: &World, signature: &str) {
    world.cluster.set(|state| {
        let key = ("team".to_owned(), "key".to_owned());
        state.secrets.insert(key, secret(signature));
    });
}

fn told(reason: &'static str) -> [(&'static str, &'static str, &'static str, i32); 1] {
    [("PersistentVolumeClaim", "data", reason, 1)]
}

fn spelled(at: SystemTime) -> String {
    k8s_openapi::jiff::Timestamp::try_from(at).unwrap().to_string()
}

async fn list(container: &Container) -> blob_client::Result<()> {
    container.list(&ListOptions::default()).await.map(drop)
}

#[tokio::test]
async fn a_secret_is_read_again_when_a_call_is_refused() {
    for named in [true, false] {
        let world = world();
        let service = Service::that_accepts(&["1"]).await;
        let (attributes, reached) = reached(&service, sas("1"));
        let container = reached.container.clone();
        let source = if named {
            Source::of(&attributes, false, Whose::Staged(at()))
        } else {
            world.cluster.set(|state| {
                let volume = state.volumes.get_mut("pv-1").unwrap();
                volume.stage_secret = Some(("team".into(), "key".into()));
            });
            Source::of(&attributes, true, Whose::Staged(at()))
        };
        let _renewing = world.service.renew(at(), &attributes, source, reached).unwrap();
        list(&container).await.unwrap();
        put_secret(&world, "2");
        service.accept(&["2"]);
        list(&container).await.unwrap();
        world
            .cluster
            .until(|state| state.told() == told("CredentialReplaced"))
            .await;
        let events = world.cluster.set(|state| format!("{:?}", state.events));
        assert!(!events.contains("sig="), "{events}");
    }
}

/// What replaces a SAS is in the Secret before it ends, and no call has to be refused first.
#[tokio::test]
async fn a_secret_is_read_again_before_its_sas_ends() {
    let world = world();
    let service = Service::that_accepts(&["1", "2"]).await;
    // So that half of the longest time before the end comes in a moment.
    let end = SystemTime::now() + READ_BEFORE[0] / 2 + Duration::from_secs(2);
    let ending = Credentials::Sas(format!("se={}&sig=1", spelled(end)).into());
    let (attributes, reached) = reached(&service, ending);
    let source = Source::of(&attributes, false, Whose::Staged(at()));
    put_secret(&world, "2");
    let mut keeper = Keeper::new(world.service.clone(), at(), attributes, source, reached);
    keeper.share = SHARE.start;
    let (_sender, offers) = mpsc::channel(1);
    let replaced = world
        .cluster
        .until(|state| state.told().iter().any(|told| told.2 == "CredentialReplaced"));
    let read = tokio::time::timeout(Duration::from_secs(60), async {
        tokio::select! {
            () = keeper.keep(offers) => unreachable!("the mount has not ended"),
            () = replaced => {}
        }
    });
    read.await.expect("the Secret is not read again");
}

#[test]
fn a_secret_is_read_three_times_before_its_sas_ends() {
    let seconds = Duration::from_secs;
    for (left, pause) in [
        (seconds(7200), Some(seconds(6600))),
        (seconds(601), Some(seconds(1))),
        (seconds(600), Some(seconds(480))),
        (seconds(120), Some(seconds(100))),
        (Duration::from_millis(20_001), Some(seconds(1))),
        (seconds(20), None),
        (seconds(0), None),
    ] {
        assert_eq!(read_before(left, 1.0), pause, "{left:?}");
    }
    assert_eq!(read_before(seconds(600), 0.5), Some(seconds(300)));
}

#[tokio::test]
async fn what_is_not_accepted_is_told_and_changes_nothing() {
    let world = world();
    let service = Service::that_accepts(&["1", "2"]).await;
    let (attributes, reached) = reached(&service, sas("1"));
    let (container, endpoint) = (reached.container.clone(), reached.account.endpoint.clone());
    let source = Source::Calls;
    let renewing = world.service.renew(at(), &attributes, source, reached).unwrap();
    let offer = |endpoint: &url::Url, signature: &str| {
        renewing.offer(Ok(Offer {
            endpoint: endpoint.clone(),
            credentials: sas(signature),
        }));
    };
    // What is in use already is nothing to tell; what was refused is told once.
    for signature in ["1", "wrong", "wrong"] {
        offer(&endpoint, signature);
    }
    world
        .cluster
        .until(|state| state.told() == told("CredentialRefused"))
        .await;
    list(&container).await.unwrap();
    offer(&"http://127.0.0.1:1/other".parse().unwrap(), "2");
    world
        .cluster
        .until(|state| state.told().iter().any(|told| told.3 == 2))
        .await;
    offer(&endpoint, "2");
    let both = [
        told("CredentialRefused").map(|told| (told.0, told.1, told.2, 2))[0],
        told("CredentialReplaced")[0],
    ];
    world.cluster.until(|state| state.told() == both).await;
    service.accept(&["2"]);
    list(&container).await.unwrap();
}

#[tokio::test]
async fn the_end_of_a_sas_is_told_before_and_when_it_comes() {
    let hours = |hours: u64| SystemTime::now() + Duration::from_secs(hours * 3600);
    for (end, reason) in [
        (hours(20), "CredentialExpiring"),
        (SystemTime::now() + Duration::from_secs(600), "CredentialExpiring"),
        (SystemTime::now() - Duration::from_secs(1), "CredentialExpired"),
    ] {
        let world = world();
        let service = Service::that_accepts(&["1"]).await;
        let ending = Credentials::Sas(format!("se={}&sig=1", spelled(end)).into());
        let (attributes, reached) = reached(&service, ending);
        let source = Source::Calls;
        let _renewing = world.service.renew(at(), &attributes, source, reached).unwrap();
        world.cluster.until(|state| state.told() == told(reason)).await;
    }
}

/// Also when the one in use is refused: nothing works then, which waits for the right one.
#[tokio::test]
async fn one_that_may_do_less_is_told_and_not_used() {
    let world = world();
    let service = Service::that_accepts(&["1"]).await;
    let (attributes, reached) = reached(&service, sas("1"));
    let (container, endpoint) = (reached.container.clone(), reached.account.endpoint.clone());
    let renewing = world
        .service
        .renew(at(), &attributes, Source::Calls, reached)
        .unwrap();
    let verdict = container.for_a_verdict(Duration::from_secs(20));
    list(&verdict).await.unwrap();
    service.accept(&[service.lesser]);
    list(&verdict).await.unwrap_err();
    let offer = |signature| {
        renewing.offer(Ok(Offer {
            endpoint: endpoint.clone(),
            credentials: sas(signature),
        }));
    };
    offer(service.lesser);
    world
        .cluster
        .until(|state| state.told() == told("CredentialRefused"))
        .await;
    list(&verdict).await.unwrap_err();
    service.accept(&["2"]);
    offer("2");
    world
        .cluster
        .until(|state| state.told().iter().any(|told| told.2 == "CredentialReplaced"))
        .await;
    list(&verdict).await.unwrap();
}

fn keeper(world: &World, service: &Service) -> Keeper {
    let (attributes, reached) = reached(service, sas("1"));
    Keeper::new(world.service.clone(), at(), attributes, Source::Calls, reached)
}

#[tokio::test]
async fn an_end_is_told_once_and_again_when_it_is_nearer() {
    let world = world();
    let service = Service::that_accepts(&["1"]).await;
    let mut keeper = keeper(&world, &service);
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    let end = |at| End {
        at: SystemTime::UNIX_EPOCH + minutes(at),
        what: Ending::Sas,
    };
    let (one, other) = (end(1), end(2));
    for (end, left, told) in [
        (one, 48 * 60, None),
        (one, 20 * 60, Some(Change::CredentialExpiring)),
        (one, 19 * 60, None),
        (one, 50, Some(Change::CredentialExpiring)),
        (one, 40, None),
        (one, 0, Some(Change::CredentialExpired)),
        (one, 0, None),
        (other, 20 * 60, Some(Change::CredentialExpiring)),
        (other, 20 * 60, None),
    ] {
        assert_eq!(keeper.due(end, minutes(left)), told, "{left} min");
    }
}

/// Kubelet brings it every minute.
#[tokio::test]
async fn what_stays_wrong_is_told_once_an_hour() {
    let world = world();
    let service = Service::that_accepts(&["1"]).await;
    let mut keeper = keeper(&world, &service);
    let error = |text: &str| Error::new(Reason::InvalidValue, text.to_owned());
    let mut told = |text, credentials| {
        keeper.tell_refused(&error(text), credentials);
        keeper.told_refused.len()
    };
    assert_eq!(told("a", None), 1);
    assert_eq!(told("a", None), 1);
    assert_eq!(told("b", None), 2);
    // The same text of another key, and another text of the same one: an identity service numbers answers.
    assert_eq!(told("refused", Some(sas("2"))), 3);
    assert_eq!(told("refused at noon", Some(sas("2"))), 3);
    assert_eq!(told("refused", Some(sas("3"))), 4);
    // By turns.
    assert_eq!(told("a", None), 4);
    assert_eq!(told("refused", Some(sas("2"))), 4);
}

/// A Secret for the stage and another one for each publish, both of which work.
#[tokio::test]
async fn two_secrets_do_not_take_a_mount_from_each_other() {
    let world = world();
    let service = Service::that_accepts(&["1", "2"]).await;
    let mut keeper = keeper(&world, &service);
    let offer = |signature, keeper: &Keeper| Offer {
        endpoint: keeper.reached.account.endpoint.clone(),
        credentials: sas(signature),
    };
    for (signature, by) in [("1", By::Secret), ("2", By::Call)] {
        let offer = offer(signature, &keeper);
        keeper.consider(offer, by, Tries::default()).await;
    }
    let in_use = keeper.renewal.in_use();
    for (signature, by) in [("1", By::Secret), ("2", By::Call), ("1", By::Secret)] {
        let offer = offer(signature, &keeper);
        keeper.consider(offer, by, Tries::default()).await;
        assert_eq!(keeper.renewal.in_use(), in_use);
    }
}

/// A key is not new on all servers at once.
#[tokio::test]
async fn a_new_key_is_tried_once_more_before_it_is_called_wrong() {
    let world = world();
    let service = Service::that_accepts(&["1"]).await;
    let mut keeper = keeper(&world, &service);
    let offer = Offer {
        endpoint: keeper.reached.account.endpoint.clone(),
        credentials: sas("2"),
    };
    keeper.consider(offer, By::Call, Tries::default()).await;
    assert!(keeper.told_refused.is_empty());
    let Again { offer, by, tries, .. } = keeper.again.take().unwrap();
    service.accept(&["1", "2"]);
    let before = keeper.renewal.in_use();
    keeper.consider(offer, by, tries).await;
    assert!(keeper.again.is_none() && keeper.told_refused.is_empty());
    assert_ne!(keeper.renewal.in_use(), before);
}

/// Calls wait where somebody brings newer ones, and a Secret that may not be read is nobody.
#[tokio::test]
async fn a_promise_is_made_where_somebody_brings_credentials() {
    let world = world();
    let service = Service::that_accepts(&["1"]).await;
    let promises = |node: NodeService, source: Source| {
        let (attributes, reached) = reached(&service, sas("1"));
        Keeper::new(node, at(), attributes, source, reached)
            .renewal
            .promises()
    };
    let alone = || NodeService {
        link: None,
        ..world.service.clone()
    };
    let staged = || Source::StageSecret(at());
    assert!(promises(world.service.clone(), staged()));
    assert!(!promises(alone(), staged()), "nobody can read it");
    assert!(promises(alone(), Source::Calls));
    assert!(!promises(world.service.clone(), Source::Nobody));
}

#[test]
fn only_what_is_kept_in_secrets_is_read_again() {
    let of = |pairs: &[(&str, &str)], brought: bool| {
        let attributes = Attributes::parse(&map(pairs), Scope::Attributes).unwrap();
        Source::of(&attributes, brought, Whose::Staged(at()))
    };
    assert!(matches!(of(&[], true), Source::StageSecret(_)));
    assert!(matches!(of(&[], false), Source::Nobody));
    assert!(matches!(of(&[("secretName", "key")], false), Source::Named(_)));
    assert!(matches!(
        of(&[("secretName", "key")], true),
        Source::StageSecret(_)
    ));
    let public = [("secretName", "key"), ("AzureStorageAuthType", "Anonymous")];
    assert!(matches!(of(&public, false), Source::Nobody));
}
