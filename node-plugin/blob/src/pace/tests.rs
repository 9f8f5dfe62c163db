//! What accounts are asked, in virtual time.

use std::sync::Arc;

use super::*;
use crate::pace::width::{NARROWEST, WIDEST};

fn account() -> (Accounts, Share) {
    let accounts = Accounts::default();
    let share = accounts.volume("https://a/");
    (accounts, share)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

async fn turn(share: &Share) -> Turn<'_> {
    share.turn(soon()).await.expect("a turn")
}

/// How many requests this account may have out, as found by taking them.
async fn width(share: &Share) -> usize {
    let mut taken = Vec::new();
    while let Some(turn) = share.turn(Instant::now()).await {
        taken.push(turn);
    }
    taken.len()
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_out_are_capped_for_all_volumes_together() {
    let (accounts, first) = account();
    let second = accounts.volume("https://a/");
    let elsewhere = accounts.volume("https://b/");
    let mut taken = Vec::new();
    for _ in 0..WIDEST {
        taken.push(turn(&first).await);
    }
    assert!(first.turn(soon()).await.is_none());
    // One that asks for all of it leaves something for the others.
    let few = [turn(&second).await, turn(&second).await];
    assert_eq!(width(&elsewhere).await, WIDEST);
    drop(few);
    drop(taken);
    assert_eq!(width(&second).await, WIDEST);
}

#[tokio::test(start_paused = true)]
async fn a_busy_service_is_asked_less_at_a_time_and_more_again_when_it_answers() {
    let (accounts, share) = account();
    let other = accounts.volume("https://a/");
    let mut out = Vec::new();
    for _ in 0..100 {
        out.push(turn(&share).await);
    }
    tokio::time::advance(Duration::from_millis(5)).await;
    // All who were out hear the same, and it counts once.
    for turn in out {
        turn.busy(None);
    }
    assert_eq!(width(&other).await, 80);
    for _ in 0..60 {
        let busy = turn(&share).await;
        tokio::time::advance(Duration::from_millis(1)).await;
        busy.busy(None);
    }
    assert_eq!(width(&other).await, NARROWEST);
    // One more for each round of answers.
    for round in 1..=5 {
        let mut out = Vec::new();
        for _ in 0..NARROWEST + round {
            out.extend(share.turn(Instant::now()).await);
        }
        for turn in out {
            turn.well();
        }
    }
    let wider = width(&other).await;
    assert!((NARROWEST + 1..=NARROWEST + 5).contains(&wider), "{wider}");
}

#[tokio::test(start_paused = true)]
async fn volumes_take_turns() {
    let (accounts, greedy) = account();
    let (greedy, modest) = (Arc::new(greedy), Arc::new(accounts.volume("https://a/")));
    for _ in 0..60 {
        let busy = turn(&greedy).await;
        tokio::time::advance(Duration::from_millis(1)).await;
        busy.busy(None);
    }
    let mut out = Vec::new();
    for _ in 0..NARROWEST {
        out.push(turn(&greedy).await);
    }
    let served = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for (name, share, number) in [("greedy", &greedy, 50), ("modest", &modest, 2)] {
        for _ in 0..number {
            let (share, served) = (Arc::clone(share), Arc::clone(&served));
            tasks.push(tokio::spawn(async move {
                let _turn = share.turn(soon()).await.expect("a turn");
                served.lock().unwrap().push(name);
            }));
            tokio::task::yield_now().await;
        }
    }
    drop(out);
    for task in tasks {
        task.await.unwrap();
    }
    let served = served.lock().unwrap();
    let last = served.iter().rposition(|name| *name == "modest").unwrap();
    assert!(last < 6, "{served:?}");
}

/// Who has left is passed over, and what was handed to him comes back.
#[tokio::test(start_paused = true)]
async fn who_leaves_takes_nothing_along() {
    let (_accounts, share) = account();
    let share = Arc::new(share);
    let mut out = Vec::new();
    for _ in 0..WIDEST {
        out.push(turn(&share).await);
    }
    for _ in 0..20 {
        let waits = Arc::clone(&share);
        let task = tokio::spawn(async move { waits.turn(soon()).await.is_some() });
        tokio::task::yield_now().await;
        // Before or just after it was its turn.
        drop(out.pop());
        task.abort();
        let _ = task.await;
    }
    drop(out);
    assert_eq!(width(&share).await, WIDEST);
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_one_is_told_holds_for_all() {
    let (accounts, share) = account();
    let other = accounts.volume("https://a/");
    let elsewhere = accounts.volume("https://b/");
    turn(&share).await.busy(Some(Duration::from_secs(3)));
    let began = Instant::now();
    drop(turn(&other).await);
    assert_eq!(began.elapsed().as_secs(), 3);
    turn(&share).await.busy(Some(Duration::from_secs(3000)));
    assert!(other.turn(soon()).await.is_none());
    let began = Instant::now();
    drop(turn(&elsewhere).await);
    assert_eq!(began.elapsed(), Duration::ZERO);
    drop(other.turn(began + Duration::from_secs(60)).await.expect("a turn"));
    assert_eq!(began.elapsed(), LONGEST_SHARED_PAUSE);
}

/// Repetitions in an outage: what calls bring, what each volume has, and a reserve.
#[tokio::test(start_paused = true)]
async fn repetitions_are_a_tenth_of_the_calls_and_one_a_second_while_nobody_answers() {
    let (accounts, share) = account();
    let other = accounts.volume("https://a/");
    let minute = Instant::now() + Duration::from_secs(60);
    let mut repeated = 0;
    // 600 calls in a minute, each of which would repeat for ever.
    let count = async {
        while share.repeat(minute).await {
            repeated += 1;
        }
    };
    let calls = async {
        for _ in 0..600 {
            share.began();
            tokio::time::sleep(Duration::from_millis(99)).await;
        }
    };
    tokio::join!(count, calls);
    assert!((60 + 60..=60 + 60 + 35).contains(&repeated), "{repeated}");
    // Another volume has its own floor, and there is more for all as soon as somebody is answered.
    let mut repeated = 0;
    while other.repeat(Instant::now()).await {
        repeated += 1;
    }
    assert_eq!(repeated, 10);
    assert!(!share.repeat(Instant::now()).await);
    turn(&other).await.well();
    assert!(share.repeat(Instant::now()).await && share.repeat(Instant::now()).await);
    assert!(!share.repeat(Instant::now()).await);
}

/// Who waits is let go on by an answer, without waiting for the floor.
#[tokio::test(start_paused = true)]
async fn an_answer_lets_those_who_wait_go_on() {
    let (_accounts, share) = account();
    while share.repeat(Instant::now()).await {}
    let began = Instant::now();
    let (both, ()) = tokio::join!(
        async { share.repeat(soon()).await && share.repeat(soon()).await },
        async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            turn(&share).await.well();
        }
    );
    assert!(both);
    assert_eq!(began.elapsed().as_millis(), 10);
}

#[tokio::test(start_paused = true)]
async fn what_accounts_are_asked_is_told() {
    let (accounts, share) = account();
    let elsewhere = accounts.volume("https://b/");
    let rest = Load {
        out: 0,
        waiting: 0,
        width: WIDEST,
        repetitions_left: 20,
        repeated: 0,
        refused: 0,
    };
    assert_eq!(accounts.load(), rest);
    let busy = turn(&share).await;
    tokio::time::advance(Duration::from_millis(5)).await;
    busy.busy(None);
    let mut out = Vec::new();
    for _ in 0..NARROWEST {
        out.push(turn(&share).await);
    }
    let mut waits = Box::pin(share.turn(soon()));
    assert!(futures::poll!(waits.as_mut()).is_pending());
    let also = turn(&elsewhere).await;
    let now = accounts.load();
    assert_eq!((now.out, now.waiting, now.width), (NARROWEST + 1, 1, NARROWEST));
    drop(waits);
    drop((out, also));
    // The reserve and the floor, and no more.
    for _ in 0..30 {
        assert!(share.repeat(Instant::now()).await);
    }
    assert!(!share.repeat(Instant::now()).await);
    let now = accounts.load();
    assert_eq!((now.out, now.waiting), (0, 0));
    assert_eq!((now.repetitions_left, now.repeated, now.refused), (0, 30, 1));
    drop(share);
    let now = accounts.load();
    assert_eq!((now.width, now.repetitions_left, now.repeated), (WIDEST, 20, 30));
}

#[tokio::test(start_paused = true)]
async fn a_line_that_does_not_get_bodies_through_is_asked_less_at_a_time() {
    let (_accounts, share) = account();
    let mut out = Vec::new();
    for _ in 0..10 {
        out.push(turn(&share).await);
    }
    tokio::time::advance(Duration::from_millis(5)).await;
    for turn in out {
        turn.stalled();
    }
    assert_eq!(width(&share).await, 8);
}
