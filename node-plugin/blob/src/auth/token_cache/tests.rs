//! The cache against a source that counts, in virtual time.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;
use crate::error::Error;

#[derive(Debug, Default)]
struct Counting {
    fetched: AtomicU32,
    failed: AtomicU32,
    broken: AtomicBool,
}

#[async_trait]
impl Fetch for Arc<Counting> {
    async fn fetch(&self) -> Result<Fetched> {
        // Long enough for callers to meet.
        tokio::time::sleep(Duration::from_millis(100)).await;
        if self.broken.load(Ordering::Relaxed) {
            self.failed.fetch_add(1, Ordering::Relaxed);
            return Err(Error::Token {
                message: "no".into(),
                retryable: true,
            });
        }
        let n = self.fetched.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Fetched {
            token: Secret::new(format!("t{n}")),
            lifetime: Duration::from_secs(3600),
        })
    }
}

async fn token(cache: &CachedToken) -> String {
    cache.token().await.unwrap().expose().clone()
}

#[tokio::test(start_paused = true)]
async fn many_callers_one_fetch() {
    let source = Arc::new(Counting::default());
    let cache = CachedToken::new(Arc::clone(&source));
    let all = futures::future::join_all((0..50).map(|_| token(&cache))).await;
    assert!(all.iter().all(|t| t == "t1"));
    assert_eq!(source.fetched.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn refreshed_in_the_background_before_it_expires() {
    let source = Arc::new(Counting::default());
    let cache = CachedToken::new(Arc::clone(&source));
    assert_eq!(token(&cache).await, "t1");
    tokio::time::advance(Duration::from_secs(2339)).await;
    assert_eq!(token(&cache).await, "t1");
    assert_eq!(source.fetched.load(Ordering::Relaxed), 1);
    tokio::time::advance(Duration::from_secs(722)).await;
    // Nobody waits for the refresh.
    let before = Instant::now();
    assert_eq!(token(&cache).await, "t1");
    assert_eq!(token(&cache).await, "t1");
    assert_eq!(Instant::now(), before);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(token(&cache).await, "t2");
    assert_eq!(source.fetched.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_identity_service_is_survived_while_the_token_lives() {
    let source = Arc::new(Counting::default());
    let cache = CachedToken::new(Arc::clone(&source));
    token(&cache).await;
    source.broken.store(true, Ordering::Relaxed);
    for _ in 0..8 {
        tokio::time::advance(Duration::from_secs(440)).await;
        assert_eq!(token(&cache).await, "t1");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // 3,521.6 s: less than a minute and a half left; soon too little to give out.
    tokio::time::advance(Duration::from_secs(30)).await;
    assert!(matches!(cache.token().await, Err(Error::Token { .. })));
    source.broken.store(false, Ordering::Relaxed);
    tokio::time::advance(FAILURE_KEPT).await;
    assert_eq!(token(&cache).await, "t2");
}

#[tokio::test(start_paused = true)]
async fn an_outage_costs_all_callers_one_fetch() {
    let source = Arc::new(Counting::default());
    source.broken.store(true, Ordering::Relaxed);
    let cache = CachedToken::new(Arc::clone(&source));
    let began = Instant::now();
    for _ in 0..2 {
        let all = futures::future::join_all((0..50).map(|_| cache.token())).await;
        assert!(
            all.iter()
                .all(|t| matches!(t, Err(Error::Token { message, retryable: true }) if message == "no"))
        );
    }
    assert_eq!(
        began.elapsed(),
        Duration::from_millis(100),
        "nobody waits in a line"
    );
    assert_eq!(source.failed.load(Ordering::Relaxed), 1);
    // Not for long.
    tokio::time::advance(FAILURE_KEPT).await;
    source.broken.store(false, Ordering::Relaxed);
    assert_eq!(token(&cache).await, "t1");
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_does_not_end_the_fetch_of_the_others() {
    let source = Arc::new(Counting::default());
    let cache = CachedToken::new(Arc::clone(&source));
    let hasty = tokio::time::timeout(Duration::from_millis(50), cache.token());
    let (left, got) = tokio::join!(hasty, token(&cache));
    assert!(left.is_err());
    assert_eq!(got, "t1");
    assert_eq!(source.fetched.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_rejected_token_is_replaced_but_not_a_fresh_one() {
    let source = Arc::new(Counting::default());
    let cache = CachedToken::new(Arc::clone(&source));
    token(&cache).await;
    cache.reject();
    assert_eq!(token(&cache).await, "t1");
    tokio::time::advance(Duration::from_secs(60)).await;
    cache.reject();
    assert_eq!(token(&cache).await, "t2");
}

/// After a reboot of a region all nodes fetch at the same time; they must not do so for ever.
#[tokio::test(start_paused = true)]
async fn sources_that_began_together_do_not_refresh_together() {
    let caches: Vec<CachedToken> = (0..100)
        .map(|_| CachedToken::new(Arc::<Counting>::default()))
        .collect();
    futures::future::join_all(caches.iter().map(token)).await;
    let now = Instant::now();
    let due = |cache: &CachedToken| cache.0.lock().held.as_ref().unwrap().refresh - now;
    let mut due: Vec<u64> = caches.iter().map(|cache| due(cache).as_secs()).collect();
    due.sort_unstable();
    assert!(due[0] >= 2339 && due[99] <= 3060, "{due:?}");
    assert!(due[99] - due[0] > 300, "{due:?}");
}

/// Many volumes share a source: one that is refused whatever it brings must not take the token of the others
/// again and again.
#[tokio::test(start_paused = true)]
async fn whoever_is_always_refused_costs_a_fetch_a_minute() {
    let source = Arc::new(Counting::default());
    let cache = CachedToken::new(Arc::clone(&source));
    for _ in 0..300 {
        token(&cache).await;
        cache.reject();
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let fetched = source.fetched.load(Ordering::Relaxed);
    assert!((2..=7).contains(&fetched), "{fetched}");
}

/// A volume that nobody uses asks for no token: that the last one ends is nothing to tell.
#[tokio::test(start_paused = true)]
async fn the_end_of_a_token_counts_only_when_a_newer_one_could_not_be_had() {
    let source = Arc::new(Counting::default());
    let cache = CachedToken::new(Arc::clone(&source));
    assert!(cache.ends().is_none());
    token(&cache).await;
    assert!(cache.ends().is_some());
    tokio::time::advance(Duration::from_secs(3450)).await;
    assert!(cache.ends().is_none(), "nobody has asked");
    source.broken.store(true, Ordering::Relaxed);
    token(&cache).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(cache.ends().is_some(), "a newer one could not be fetched");
    tokio::time::advance(Duration::from_secs(200)).await;
    assert!(cache.ends().is_some(), "and this one has ended");
}
