//! Events: what failed, on the claim of the volume; what became of the channel, on the node.
//!
//! The pod has kubelet's own Event, with the same words, for each call that fails.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::kube::now;
use super::pace::{Pauses, Told};
use super::queue::{About, Notice, Queue};
use super::volumes::VolumeAt;
use super::{Error, EventView, Membership, ObjectRef, Result};
use crate::error::Change;

/// Longest message the API server accepts, in bytes (core/v1 Event validation).
const LONGEST_MESSAGE: usize = 1024;
/// The API server forgets Events after an hour by default; a repetition after this time is a new one.
const REPEATED_WITHIN: Duration = Duration::from_secs(50 * 60);
/// Kind of the object of a node.
const NODE: &str = "Node";
/// Events remembered for counting.
const REMEMBERED: usize = 1024;
/// How long a channel may come and go before it is told: a flap is one thing to tell, and a fleet that loses
/// its channels at the same time does not come at the same time.
const SETTLES: Duration = Duration::from_secs(30);
/// Longest time for which the node is believed to be the same object.
const SAME_NODE: Duration = Duration::from_secs(600);
/// A notice that could not be told for this long is given up: it would only confuse.
const GIVE_UP: Duration = Duration::from_secs(15 * 60);

/// Takes note of failures and never waits. Without a cluster nobody reads what it takes; it stays bounded.
#[derive(Debug, Clone, Default)]
pub struct Reporter(Arc<Queue>);

impl Reporter {
    /// A volume could not be staged or published. `reason`: the word of the error table; `message`: what the
    /// call answered.
    pub fn failed(&self, volume: VolumeAt, reason: &str, message: &str) {
        self.put(About::Volume(volume), reason, message, true);
    }

    /// Something became of a volume that is staged.
    pub fn changed(&self, volume: VolumeAt, change: Change, message: &str) {
        self.put(
            About::Volume(volume),
            &change.to_string(),
            message,
            change.is_warning(),
        );
    }

    /// How many Events were given up: the API server was away for too long, or too much happened meanwhile.
    pub fn dropped(&self) -> u64 {
        self.0.dropped()
    }

    fn put(&self, about: About, reason: &str, message: &str, warning: bool) {
        let now = now();
        self.0.push(Notice {
            about,
            reason: reason.to_owned(),
            message: shortened(message),
            warning,
            count: 1,
            first: now,
            last: now,
        });
    }
}

fn shortened(message: &str) -> String {
    if message.len() <= LONGEST_MESSAGE {
        return message.to_owned();
    }
    let mut end = LONGEST_MESSAGE - '…'.len_utf8();
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &message[..end])
}

/// Notes the changes of the channel, those of half a minute together; never ends.
pub(super) async fn watch_transport(membership: &Membership, reporter: &Reporter) {
    let mut channel = membership.channel.clone();
    let mut seen = channel.borrow_and_update().changes;
    loop {
        if channel.changed().await.is_err() {
            // Switched off: there are no changes.
            std::future::pending::<()>().await;
        }
        let first = channel.borrow_and_update().clone();
        // Another reason for the same state is no change.
        if first.changes == seen {
            continue;
        }
        tokio::time::sleep(SETTLES.mul_f64(rand::random_range(0.8..1.2))).await;
        let state = channel.borrow_and_update().clone();
        let missed = state.changes.saturating_sub(seen);
        seen = state.changes;
        let usable = state.unusable.is_none();
        let tell = |usable: bool, why: &str| {
            let (change, text) = if usable {
                (
                    Change::ChannelRestored,
                    Change::ChannelRestored.message().to_owned(),
                )
            } else {
                let text = format!("{}: {why}", Change::ChannelLost.message());
                (Change::ChannelLost, text)
            };
            reporter.put(About::Transport, &change.to_string(), &text, change.is_warning());
        };
        if missed > 1 {
            let why = first.unusable.as_deref();
            tell(!usable, why.unwrap_or("the channel was away for a moment"));
        }
        tell(usable, state.unusable.as_deref().unwrap_or_default());
    }
}

/// Sends what the reporter took, one after the other; never ends.
pub(super) async fn send(membership: &Membership, reporter: &Reporter) {
    let mut sender = Sender {
        membership,
        told: Told::new("Events"),
        finding: Told::new("which claim an Event is for"),
        node: None,
        sent: HashMap::new(),
    };
    loop {
        let notice = reporter.0.pop().await;
        if !sender.tell(&notice).await {
            reporter.0.drop_one();
        }
    }
}

struct Sent {
    event: EventView,
    at: Instant,
}

struct Sender<'a> {
    membership: &'a Membership,
    told: Told,
    /// Separate, because the rights for it are others.
    finding: Told,
    /// The node and when it was read.
    node: Option<(ObjectRef, Instant)>,
    /// By object and reason.
    sent: HashMap<(ObjectRef, String), Sent>,
}

impl Sender<'_> {
    /// False when it could not be told.
    async fn tell(&mut self, notice: &Notice) -> bool {
        let until = Instant::now() + GIVE_UP;
        let known = self.node.take();
        let known = known.filter(|(_, at)| at.elapsed() < SAME_NODE);
        let found = patiently(&self.told, until, || {
            object(self.membership, &notice.about, &self.finding, known.as_ref())
        });
        let Some(object) = found.await else { return false };
        self.node = match &known {
            None if object.kind == NODE => Some((object.clone(), Instant::now())),
            _ => known,
        };
        self.tell_one(notice, object, until).await
    }

    async fn tell_one(&mut self, notice: &Notice, object: ObjectRef, until: Instant) -> bool {
        let key = (object.clone(), notice.reason.clone());
        let cluster = &self.membership.cluster;
        let before = self
            .sent
            .remove(&key)
            .filter(|sent| sent.at.elapsed() < REPEATED_WITHIN);
        if let Some(Sent { mut event, .. }) = before {
            event.count = event.count.saturating_add(notice.count);
            event.message.clone_from(&notice.message);
            event.last = notice.last;
            let updated = patiently(&self.told, until, || async {
                match cluster.update_event(&event).await {
                    // Forgotten by the API server: a new one is made below.
                    Err(Error::NotFound(_)) => Ok(false),
                    other => other.map(|()| true),
                }
            });
            match updated.await {
                Some(true) => {
                    self.remember(key, event);
                    return true;
                }
                Some(false) => {}
                None => return false,
            }
        }
        let event = EventView {
            name: event_name(&object.name),
            object,
            warning: notice.warning,
            reason: notice.reason.clone(),
            message: notice.message.clone(),
            count: notice.count,
            first: notice.first,
            last: notice.last,
        };
        let made = patiently(&self.told, until, || cluster.create_event(&event)).await;
        if made.is_none() {
            return false;
        }
        self.remember(key, event);
        true
    }

    fn remember(&mut self, key: (ObjectRef, String), event: EventView) {
        if self.sent.len() >= REMEMBERED {
            let oldest = self.sent.iter().min_by_key(|(_, sent)| sent.at);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.sent.remove(&oldest);
            }
        }
        let at = Instant::now();
        self.sent.insert(key, Sent { event, at });
    }
}

/// Repeats a request while it may still succeed; `None` when it cannot, or not in time.
async fn patiently<T, F>(told: &Told, until: Instant, mut request: impl FnMut() -> F) -> Option<T>
where
    F: Future<Output = Result<T>>,
{
    let mut pauses = Pauses::default();
    loop {
        let result = request().await;
        told.note(&result);
        match result {
            Ok(done) => return Some(done),
            Err(error) if error.is_passing() => {
                let pause = pauses.after(&error);
                if Instant::now() + pause > until {
                    return None;
                }
                tokio::time::sleep(pause).await;
            }
            Err(_) => return None,
        }
    }
}

/// A name that no other Event has, as client-go forms it: the object's, and a number.
fn event_name(object: &str) -> String {
    // The whole may have 253 characters; names are ASCII.
    let kept = object.get(..object.len().min(220)).unwrap_or_default();
    format!("{kept}.{:016x}", rand::random::<u64>())
}

/// Whom a notice is for: the claim of a volume, else the node.
async fn object(
    membership: &Membership,
    about: &About,
    finding: &Told,
    node: Option<&(ObjectRef, Instant)>,
) -> Result<ObjectRef> {
    if let About::Volume(volume) = about {
        // An inline volume has no claim.
        let claim = where_allowed(membership.claims.of(volume).await, finding)?.flatten();
        if let Some(claim) = claim {
            return Ok(claim);
        }
    }
    if let Some((node, _)) = node {
        return Ok(node.clone());
    }
    let uid = membership.cluster.node(&membership.node).await?.uid;
    Ok(ObjectRef {
        kind: NODE,
        namespace: String::new(),
        name: membership.node.clone(),
        uid,
    })
}

/// `None` for what cannot be found out, now or later.
fn where_allowed<T>(found: Result<T>, told: &Told) -> Result<Option<T>> {
    told.note(&found);
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_passing() => Err(error),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
