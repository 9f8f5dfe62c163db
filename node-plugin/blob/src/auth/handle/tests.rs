//! Credentials that are replaced while calls are under way, against an account that accepts some of them.

use std::collections::BTreeSet;
use std::time::SystemTime;

use async_trait::async_trait;
use vsc_driver::buffer::Arena;

use super::*;
use crate::auth::{Ending, TokenSource};
use crate::secret::Secret;
use crate::transport::fake::{Step, VERSION, answer, refusal};
use crate::transport::{PathStats, Transport, TransportError};
use crate::types::{BlockId, Condition, StageOptions};
use crate::{Client, ClientConfig, Container};

/// An account behind a transport.
#[derive(Debug, Default)]
struct Account {
    /// Signatures and tokens that it accepts.
    accepts: Mutex<BTreeSet<String>>,
    /// What it was asked with, in order.
    asked: Mutex<Vec<String>>,
    /// Blobs of which it refuses everything.
    sick: Mutex<Option<String>>,
}

impl Account {
    fn that_accepts(these: &[&str]) -> Arc<Self> {
        let account = Self::default();
        account.accept(these);
        Arc::new(account)
    }

    fn accept(&self, these: &[&str]) {
        *lock(&self.accepts) = these.iter().map(|one| (*one).to_owned()).collect();
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.asked))
    }
}

/// What a URL or a header is signed with.
fn signature(text: &str) -> Option<String> {
    let found = text.split_once("sig=").or_else(|| text.split_once("Bearer "));
    found.map(|(_, signature)| signature.to_owned())
}

#[async_trait]
impl Transport for Account {
    async fn send(
        &self,
        request: crate::request::Request,
    ) -> Result<crate::response::Response, TransportError> {
        let header = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
        let url = request.url.to_string();
        let by = signature(&url).or_else(|| signature(header("authorization")?));
        let by = by.unwrap_or_default();
        let accepts = |by: &str| lock(&self.accepts).contains(by);
        lock(&self.asked).push(by.clone());
        let sick = lock(&self.sick).as_ref().is_some_and(|sick| url.contains(sick));
        let step: Step = if !accepts(&by) || sick {
            match header("authorization") {
                Some(_) => refusal(401, "InvalidAuthenticationInfo"),
                None => refusal(403, "AuthenticationFailed"),
            }
        } else if header("x-ms-copy-source").is_some_and(|source| !accepts(&signature(source).unwrap())) {
            refusal(403, "CannotVerifyCopySource")
        } else {
            answer(201, &VERSION, b"")
        };
        step(request)
    }

    fn stats(&self) -> Vec<PathStats> {
        Vec::new()
    }
}

fn sas(signature: &str) -> Credentials {
    Credentials::Sas(format!("sv=1&sig={signature}").into())
}

fn container(account: &Arc<Account>, credentials: Credentials) -> Container {
    let endpoint = "https://acct.blob.core.windows.net".parse().unwrap();
    let config = ClientConfig::new(endpoint, credentials);
    let client = Client::new(config, account.clone(), Arena::new(1 << 20).unwrap()).unwrap();
    client.container("data").unwrap()
}

/// A credential that somebody has tried, beside the one in use.
fn bring(renewal: &Renewal, credentials: &Credentials) -> Candidate {
    let candidate = renewal.offer(credentials).unwrap().unwrap();
    candidate.handle.vet(&candidate.held);
    candidate
}

async fn ask(container: &Container) -> Result<()> {
    container.delete("b", &Condition::none()).await
}

fn is_denied(outcome: Result<()>) -> bool {
    matches!(outcome, Err(Error::Denied { .. }))
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_refused_waits_for_the_newer_credential() {
    let account = Account::that_accepts(&["1"]);
    let c = container(&account, sas("1"));
    let renewal = c.renewal();
    ask(&c).await.unwrap();
    account.accept(&["2"]);
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let c = c.clone();
            tokio::spawn(async move { ask(&c).await })
        })
        .collect();
    renewal.wanted().await;
    assert!(renewal.is_unaccepted());
    tokio::time::sleep(Duration::from_secs(40)).await;
    bring(&renewal, &sas("2"));
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert!(!renewal.is_unaccepted());
    assert!(renewal.offer(&sas("2")).unwrap().is_none(), "it is in use");
    account.asked();
    ask(&c).await.unwrap();
    assert_eq!(account.asked(), ["2"]);
}

#[tokio::test(start_paused = true)]
async fn only_then_it_is_refused_and_the_next_at_once() {
    let account = Account::that_accepts(&[]);
    let c = container(&account, sas("1"));
    let renewal = c.renewal();
    let began = Instant::now();
    assert!(is_denied(ask(&c).await));
    let patience = crate::Patience::default().call();
    let waited = began.elapsed();
    assert!(waited > patience / 2 && waited <= patience, "{waited:?}");
    tokio::time::sleep(patience).await;
    account.asked();
    let began = Instant::now();
    assert!(is_denied(ask(&c).await));
    assert_eq!(began.elapsed(), Duration::ZERO, "nobody waits for ever");
    assert_eq!(account.asked().len(), 1);
    // It works again without anybody's doing, and the next time is waited for anew.
    account.accept(&["1"]);
    ask(&c).await.unwrap();
    assert!(!renewal.is_unaccepted());
    account.accept(&[]);
    let began = Instant::now();
    assert!(is_denied(ask(&c).await));
    assert!(began.elapsed() > patience / 2);
}

#[tokio::test(start_paused = true)]
async fn without_anybody_who_brings_one_a_refusal_is_one() {
    let account = Account::that_accepts(&[]);
    let c = container(&account, sas("1"));
    let began = Instant::now();
    assert!(is_denied(ask(&c).await));
    drop(c.renewal());
    assert!(is_denied(ask(&c).await));
    let _renewal = c.renewal();
    // Who wants a verdict does not wait, either.
    assert!(is_denied(ask(&c.for_a_verdict(Duration::from_secs(20))).await));
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(account.asked().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_one_never_takes_the_place_of_one_that_works() {
    let account = Account::that_accepts(&["1"]);
    let c = container(&account, sas("1"));
    let renewal = c.renewal();
    let wrong = renewal.offer(&sas("wrong")).unwrap().unwrap();
    assert!(is_denied(ask(&c.signed_with(&wrong)).await));
    assert!(wrong.is_refused());
    account.asked();
    ask(&c).await.unwrap();
    assert_eq!(account.asked(), ["1"]);
    // The other key of the account: found when the first is made anew.
    bring(&renewal, &sas("2"));
    account.accept(&["2", "3"]);
    ask(&c).await.unwrap();
    assert_eq!(account.asked(), ["1", "2"]);
    ask(&c).await.unwrap();
    assert_eq!(account.asked(), ["2"]);
    // And back again, to one that came in between.
    bring(&renewal, &sas("3"));
    account.accept(&["3"]);
    ask(&c).await.unwrap();
    account.accept(&["2"]);
    account.asked();
    ask(&c).await.unwrap();
    assert_eq!(
        account.asked(),
        ["3", "2"],
        "what was not refused lately comes first"
    );
}

#[tokio::test(start_paused = true)]
async fn a_candidate_is_put_to_use_by_who_has_tried_it() {
    let account = Account::that_accepts(&["1", "2"]);
    let c = container(&account, sas("1"));
    let renewal = c.renewal();
    let newer = renewal.offer(&sas("2")).unwrap().unwrap();
    ask(&c.signed_with(&newer)).await.unwrap();
    ask(&c).await.unwrap();
    assert_eq!(account.asked(), ["2", "1"]);
    newer.adopt();
    ask(&c).await.unwrap();
    assert_eq!(account.asked(), ["2"]);
    let known = renewal.offer(&sas("1")).unwrap().unwrap();
    assert!(!known.is_refused(), "the former one is kept");
}

/// Something about the call, not about the credential: others are served with it all the time.
#[tokio::test(start_paused = true)]
async fn a_call_does_not_wait_for_what_would_not_help_it() {
    let account = Account::that_accepts(&["1"]);
    let c = container(&account, sas("1"));
    let _renewal = c.renewal();
    *lock(&account.sick) = Some("/sick?".to_owned());
    let others = tokio::spawn({
        let c = c.clone();
        async move {
            loop {
                ask(&c).await.unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
    let began = Instant::now();
    assert!(is_denied(c.delete("sick", &Condition::none()).await));
    assert!(began.elapsed() < 3 * SPREADS, "{:?}", began.elapsed());
    others.abort();
}

/// A copy names its source with the credential that it is itself signed with.
#[tokio::test(start_paused = true)]
async fn a_copy_is_signed_by_one_credential() {
    let account = Account::that_accepts(&["2"]);
    let c = container(&account, sas("1"));
    let renewal = c.renewal();
    bring(&renewal, &sas("2"));
    c.stage_from("t", &BlockId(vec![1]), "s", 0..1, None, &StageOptions::default())
        .await
        .unwrap();
    account.accept(&["1"]);
    let none = Condition::none();
    c.copy("s", None, None, "t", None, &none).await.unwrap();
    assert_eq!(account.asked(), ["1", "2", "2", "1"]);
}

/// Tokens of one identity; without one its secret is wrong.
#[derive(Debug)]
struct Identity(Option<&'static str>);

#[async_trait]
impl TokenSource for Identity {
    async fn token(&self) -> Result<Secret<String>> {
        let refused = || Error::Token {
            message: "invalid_client".into(),
            retryable: false,
        };
        self.0.map(|token| token.to_owned().into()).ok_or_else(refused)
    }
}

/// The token was fetched a moment before the service changed what it accepts.
#[tokio::test(start_paused = true)]
async fn a_token_is_waited_for_a_little_without_a_promise() {
    let account = Account::that_accepts(&[]);
    let c = container(&account, Credentials::Token(Arc::new(Identity(Some("t")))));
    let renewal = c.renewal();
    renewal.promise(false);
    let call = tokio::spawn({
        let c = c.clone();
        async move { ask(&c).await }
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    account.accept(&["t"]);
    call.await.unwrap().unwrap();
    account.accept(&[]);
    let began = Instant::now();
    assert!(is_denied(ask(&c).await));
    let waited = began.elapsed();
    let patience = crate::Patience::default().call();
    assert!(waited >= NEW_TOKEN && waited < patience, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn an_identity_whose_secret_has_ended_makes_way_for_the_next() {
    let account = Account::that_accepts(&["t1", "t2"]);
    let identity = |token| Credentials::Token(Arc::new(Identity(token)));
    let c = container(&account, identity(None));
    let renewal = c.renewal();
    let call = tokio::spawn({
        let c = c.clone();
        async move { ask(&c).await }
    });
    renewal.wanted().await;
    assert!(account.asked().is_empty());
    bring(&renewal, &identity(Some("t1")));
    call.await.unwrap().unwrap();
    // A token that is refused, also the second time: its identity may have a successor.
    bring(&renewal, &identity(Some("t2")));
    account.accept(&["t2"]);
    ask(&c).await.unwrap();
    assert_eq!(account.asked(), ["t1", "t1", "t1", "t2"]);
}

#[tokio::test]
async fn a_token_is_not_offered_to_a_client_that_sends_in_the_clear() {
    let config = ClientConfig::new("http://acct.blob.core.windows.net".parse().unwrap(), sas("1"));
    let account = Account::that_accepts(&[]);
    let client = Client::new(config, account, Arena::new(1 << 20).unwrap()).unwrap();
    let renewal = client.container("data").unwrap().renewal();
    let token = Credentials::Token(Arc::new(Identity(Some("t"))));
    let error = renewal.offer(&token).unwrap_err().to_string();
    assert!(error.contains("in the clear"), "{error}");
}

#[test]
fn ends_are_those_that_credentials_say() {
    let at = |text: &str| {
        let moment = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
        Some(SystemTime::from(moment.unwrap()))
    };
    for (sas, end) in [
        ("sig=x&se=2030-01-02T03:04:05Z", at("2030-01-02T03:04:05Z")),
        (
            "sig=x&se=2030-01-02T03%3A04%3A05Z&ske=2030-01-01",
            at("2030-01-01T00:00:00Z"),
        ),
        ("sig=x&si=policy", None),
    ] {
        let signer = Signer::new(&Credentials::Sas(sas.to_owned().into())).unwrap();
        let what = Ending::Sas;
        assert_eq!(signer.ends(), end.map(|at| End { at, what }), "{sas}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_worked_is_not_forgotten_for_what_did_not() {
    let account = Account::that_accepts(&["1", "2"]);
    let c = container(&account, sas("1"));
    ask(&c).await.unwrap();
    let renewal = c.renewal();
    let second = renewal.offer(&sas("2")).unwrap().unwrap();
    ask(&c.signed_with(&second)).await.unwrap();
    second.adopt();
    for wrong in 10..30 {
        let wrong = renewal.offer(&sas(&wrong.to_string())).unwrap().unwrap();
        if wrong.held.id.is_multiple_of(3) {
            assert!(is_denied(ask(&c.signed_with(&wrong)).await));
        }
        assert!(c.account_credentials().read().spares.len() <= SPARES);
    }
    account.accept(&["1"]);
    ask(&c).await.unwrap();
}

/// It may do less than the one in use, which only who tries it finds out.
#[tokio::test(start_paused = true)]
async fn one_that_is_being_tried_signs_no_call() {
    let account = Account::that_accepts(&["1"]);
    let c = container(&account, sas("1"));
    let renewal = c.renewal();
    ask(&c).await.unwrap();
    account.accept(&["2"]);
    let lesser = renewal.offer(&sas("2")).unwrap().unwrap();
    assert!(is_denied(ask(&c).await));
    // From here on nobody waits any more.
    tokio::time::sleep(crate::Patience::default().call()).await;
    ask(&c.signed_with(&lesser)).await.unwrap();
    assert!(renewal.is_unaccepted(), "no call of the volume was served");
    account.asked();
    assert!(is_denied(ask(&c).await));
    lesser.forget();
    assert!(is_denied(ask(&c).await));
    assert_eq!(account.asked(), ["1", "1"]);
    renewal.offer(&sas("2")).unwrap().unwrap().adopt();
    ask(&c).await.unwrap();
    assert_eq!(account.asked(), ["2"]);
}

#[tokio::test(start_paused = true)]
async fn one_that_was_in_use_is_not_forgotten() {
    let account = Account::that_accepts(&["1", "2"]);
    let c = container(&account, sas("1"));
    let renewal = c.renewal();
    renewal.offer(&sas("2")).unwrap().unwrap().adopt();
    // A firewall has turned it away for a minute.
    renewal.offer(&sas("1")).unwrap().unwrap().forget();
    account.accept(&["1"]);
    ask(&c).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_refused_for_good_do_not_try_everything_that_is_known_each_time() {
    let account = Account::that_accepts(&[]);
    let c = container(&account, sas("1"));
    let renewal = c.renewal();
    for other in ["2", "3", "4"] {
        bring(&renewal, &sas(other));
    }
    assert!(is_denied(ask(&c).await));
    tokio::time::sleep(crate::Patience::default().call()).await;
    assert!(is_denied(ask(&c).await));
    account.asked();
    for _ in 0..10 {
        assert!(is_denied(ask(&c).await));
    }
    assert_eq!(account.asked().len(), 10);
    // Any of them that is accepted again is found soon.
    account.accept(&["3"]);
    tokio::time::sleep(AGAIN).await;
    ask(&c).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_what_is_not_promised() {
    let account = Account::that_accepts(&[]);
    let c = container(&account, sas("1"));
    let renewal = c.renewal();
    renewal.promise(false);
    renewal.promise(false);
    let began = Instant::now();
    assert!(is_denied(ask(&c).await));
    assert_eq!(began.elapsed(), Duration::ZERO);
    renewal.promise(true);
    assert!(is_denied(ask(&c).await));
    assert!(began.elapsed() > Duration::ZERO);
    drop(renewal);
    let began = Instant::now();
    assert!(is_denied(ask(&c).await));
    assert_eq!(began.elapsed(), Duration::ZERO);
}

/// Random histories: credentials are offered, tried, accepted and refused in any order.
#[tokio::test(start_paused = true)]
async fn at_no_time_is_a_working_credential_dropped_for_one_that_does_not_work() {
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};
    // As many as are kept.
    const NAMES: [&str; 1 + SPARES] = ["1", "2", "3", "4"];
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let account = Account::that_accepts(&["1"]);
        let c = container(&account, sas("1"));
        let renewal = c.renewal();
        let handle = &c.account_credentials();
        let accepts = || lock(&account.accepts).clone();
        let names = |held: &Held| match &held.credentials {
            Credentials::Sas(sas) => signature(sas.expose()).unwrap(),
            other => panic!("{other:?}"),
        };
        let known = || {
            let state = handle.read();
            state.usable().map(|held| names(held)).collect::<BTreeSet<_>>()
        };
        for step in 0..60 {
            let before = names(&handle.current());
            let worked = known().intersection(&accepts()).count();
            match random.random_range(0..6) {
                0 | 1 => {
                    let name = NAMES[random.random_range(0..NAMES.len())];
                    if let Some(candidate) = renewal.offer(&sas(name)).unwrap()
                        && random.random()
                    {
                        match ask(&c.signed_with(&candidate)).await {
                            Ok(()) if random.random() => candidate.adopt(),
                            // It may do less; or a firewall has said so.
                            _ => candidate.forget(),
                        }
                    }
                }
                // Of those that are known one goes on working: more nobody can help.
                2 => {
                    let stays = names(&handle.current());
                    let mut these: Vec<&str> = NAMES.into_iter().filter(|_| random.random()).collect();
                    these.push(&stays);
                    account.accept(&these);
                }
                3 => {
                    let mut those = accepts();
                    those.remove(&before);
                    if known().intersection(&those).count() > 0 {
                        *lock(&account.accepts) = those;
                    }
                }
                _ => {
                    let began = Instant::now();
                    ask(&c)
                        .await
                        .unwrap_or_else(|error| panic!("{seed}, {step}: {error}"));
                    assert_eq!(began.elapsed(), Duration::ZERO, "{seed}, {step}");
                }
            }
            let after = names(&handle.current());
            assert!(
                after == before || accepts().contains(&after),
                "{seed}, {step}: {before} to {after}"
            );
            let works = known().intersection(&accepts()).count();
            assert!(
                works > 0 || worked == 0,
                "{seed}, {step}: {:?} of {:?}",
                known(),
                accepts()
            );
        }
    }
}
