//! Faults and profiles of the mock, set while it runs, and what it has counted.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::oneshot;
use vsc_driver::uapi::RequestSync;

use super::behind::Behind;

/// What the mock does wrong, or slowly. Fields named `*_next` count down: that many requests are hit, then it
/// is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Answers to the command number posted to the kernel list.
    pub knows_list: bool,
    /// Answers to Ubuntu's command number.
    pub knows_ubuntu: bool,
    /// Requests that meet a full ring (EAGAIN).
    pub eagain_next: u64,
    /// Chance (0 to 1) for every request to meet a full ring.
    pub eagain_probability: f64,
    /// Requests that the driver does not take (EACCES): it compares credentials.
    pub deny_next: u64,
    /// Requests that can be out at once before the ring is full; 0 = any number.
    pub ring: u64,
    /// The device is removed: no node, ENODEV on descriptors that are still open.
    pub gone: bool,
    /// The device is removed once this many more requests have been taken.
    pub gone_after: Option<u64>,
    /// A removed device returns, as a new node, after refusing this many calls (ioctl or open).
    pub return_after: Option<u64>,
    /// A removed device returns, as a new node, after this many milliseconds.
    pub return_after_ms: Option<u64>,
    /// Requests whose answer comes `late_ms` later, whatever their timeout says.
    pub late_next: u64,
    /// See `late_next`; milliseconds.
    pub late_ms: u64,
    /// Requests that are executed but do not return until `release`.
    pub hold_next: u64,
    /// Requests that are not even executed until `release`: their caller may have given them up long ago.
    pub postpone_next: u64,
    /// Requests whose response is spoiled as `spoil` says.
    pub spoil_next: u64,
    /// See `spoil_next`.
    pub spoil: Spoil,
    /// Requests that are not executed and return `status` with an empty response.
    pub status_next: u64,
    /// See `status_next`.
    pub status: u32,
    /// Requests that return without a status having been written.
    pub silent_next: u64,
    /// Requests to which `behind` happens between the host and the service.
    pub behind_next: u64,
    /// See `behind_next`.
    pub behind: Behind,
    /// Knows OPEN, READ and CLOSE only.
    pub refuse_rest: bool,
    /// Added to every request, microseconds.
    pub latency_us: u64,
    /// Shared by all requests and both directions; 0 = no limit.
    pub bytes_per_second: u64,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            knows_list: true,
            knows_ubuntu: true,
            eagain_next: 0,
            eagain_probability: 0.0,
            deny_next: 0,
            ring: 0,
            gone: false,
            gone_after: None,
            return_after: None,
            return_after_ms: None,
            late_next: 0,
            late_ms: 0,
            hold_next: 0,
            postpone_next: 0,
            spoil_next: 0,
            spoil: Spoil::Crc,
            status_next: 0,
            status: vsc_driver::uapi::STATUS_TIMEOUT,
            silent_next: 0,
            behind_next: 0,
            behind: Behind::Unreachable,
            refuse_rest: false,
            latency_us: 0,
            bytes_per_second: 0,
        }
    }
}

/// How a response is spoiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spoil {
    /// Half of the response, with a length that admits it.
    Short,
    /// No response at all: length 0.
    Empty,
    /// A length beyond the response buffer.
    Overlong,
    /// The right length, with nothing written there.
    Unwritten,
    /// One bit of the checksum flipped.
    Crc,
    /// One bit of the body flipped.
    Body,
    /// Another magic.
    Magic,
    /// A correct frame around something that is not JSON.
    Json,
    /// A correct response that tells of half the payload only (and writes no more).
    Data,
    /// Executed, but the call ends with EPROTO: what the kernel module says of an answer that makes no sense.
    Protocol,
    /// Executed, but answered with a host status that nobody knows.
    Status,
}

/// What the mock has seen. A snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Calls that were executed and answered, with any status.
    pub requests: u64,
    /// Of these OPEN,
    pub open: u64,
    /// READ,
    pub read: u64,
    /// CLOSE,
    pub close: u64,
    /// REST,
    pub rest: u64,
    /// and methods it does not know (or refuses).
    pub unknown: u64,
    /// Payload bytes read from guests.
    pub bytes_in: u64,
    /// Payload bytes written to guests.
    pub bytes_out: u64,
    /// Calls answered EAGAIN.
    pub eagain: u64,
    /// Calls answered ENODEV.
    pub enodev: u64,
    /// Calls refused as malformed (EINVAL, EFAULT), probes included.
    pub refused: u64,
    /// Requests held at this moment.
    pub held: u64,
    /// Requests out at this moment, held ones included.
    pub in_flight: u64,
    /// The most that were out at once.
    pub most_in_flight: u64,
}

/// Handle on the faults of a mounted mock; clones steer the same mock.
#[derive(Debug, Clone)]
pub struct FaultControl {
    pub(super) state: Arc<Control>,
}

impl FaultControl {
    /// The faults as they are now, counted down.
    pub fn get(&self) -> Faults {
        self.state.lock().faults.clone()
    }

    /// Changes them. `gone` going from true to false makes a new node.
    pub fn update(&self, change: impl FnOnce(&mut Faults)) {
        let mut inner = self.state.lock();
        let mut faults = inner.faults.clone();
        change(&mut faults);
        inner.set(faults);
    }

    /// No more faults; a removed device returns, held requests stay held.
    pub fn reset(&self) {
        self.update(|faults| *faults = Faults::default());
    }

    /// Lets all held requests return. Answers how many there were.
    pub fn release(&self) -> usize {
        self.state.release()
    }

    /// One command as the control file takes it: `release`, `reset`, a JSON object, or `key=value` words.
    pub fn command(&self, line: &str) -> io::Result<()> {
        let invalid = |message: String| io::Error::new(io::ErrorKind::InvalidInput, message);
        match line.trim() {
            "" => return Ok(()),
            "release" => {
                self.release();
                return Ok(());
            }
            "reset" => {
                self.reset();
                return Ok(());
            }
            _ => {}
        }
        let changes: Map<String, Value> = if line.trim_start().starts_with('{') {
            serde_json::from_str(line).map_err(|error| invalid(error.to_string()))?
        } else {
            line.split_whitespace()
                .map(|word| {
                    let (key, value) = word
                        .split_once('=')
                        .ok_or_else(|| invalid(format!("{word}: neither a command nor key=value")))?;
                    // What is no JSON value is a word, as in spoil=crc.
                    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
                    Ok((key.to_owned(), value))
                })
                .collect::<io::Result<_>>()?
        };
        let mut inner = self.state.lock();
        let Value::Object(mut all) = serde_json::to_value(&inner.faults)? else {
            return Err(invalid("faults are an object".into()));
        };
        all.extend(changes);
        let faults =
            serde_json::from_value(Value::Object(all)).map_err(|error| invalid(error.to_string()))?;
        inner.set(faults);
        Ok(())
    }
}

/// What is to happen to one request.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) late: Option<Duration>,
    pub(super) hold: Option<oneshot::Receiver<()>>,
    pub(super) postpone: Option<oneshot::Receiver<()>>,
    pub(super) spoil: Option<Spoil>,
    pub(super) status: Option<u32>,
    pub(super) silent: bool,
    pub(super) behind: Option<Behind>,
    pub(super) refuse_rest: bool,
    pub(super) latency: Duration,
}

/// Why a request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reject {
    Gone,
    Full,
    Denied,
}

/// Shared state of a mounted mock.
#[derive(Debug)]
pub(super) struct Control {
    inner: Mutex<Inner>,
    pub(super) tally: Tally,
}

#[derive(Debug)]
struct Inner {
    faults: Faults,
    /// Counts the nodes there have been; descriptors of earlier ones answer ENODEV for ever.
    generation: u64,
    gone_since: Instant,
    held: Vec<oneshot::Sender<()>>,
    in_flight: u64,
    most_in_flight: u64,
    /// When the shared link is free again (`bytes_per_second`).
    link_free: Instant,
    last: Option<RequestSync>,
    /// Set at unmount: nothing is taken any more.
    closed: bool,
}

/// Counters that need no lock.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) open: AtomicU64,
    pub(super) read: AtomicU64,
    pub(super) close: AtomicU64,
    pub(super) rest: AtomicU64,
    pub(super) unknown: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
    pub(super) eagain: AtomicU64,
    pub(super) enodev: AtomicU64,
    pub(super) refused: AtomicU64,
}

impl Tally {
    pub(super) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }
}

impl Inner {
    fn set(&mut self, faults: Faults) {
        if faults.gone && !self.faults.gone {
            self.gone_since = Instant::now();
        } else if self.faults.gone && !faults.gone {
            self.generation += 1;
        }
        self.faults = faults;
    }

    fn remove(&mut self) {
        let gone = Faults {
            gone: true,
            gone_after: None,
            ..self.faults.clone()
        };
        self.set(gone);
    }

    /// Whether the device is there; a removed one returns here when its time has come. `refused`: a call is
    /// at stake.
    fn present(&mut self, refused: bool) -> bool {
        if self.closed {
            return false;
        }
        if self.faults.gone {
            let waited = self.gone_since.elapsed();
            let by_time = self
                .faults
                .return_after_ms
                .is_some_and(|ms| waited >= Duration::from_millis(ms));
            let by_count = self.faults.return_after == Some(0);
            if by_time || by_count {
                let back = Faults {
                    gone: false,
                    return_after: None,
                    return_after_ms: None,
                    ..self.faults.clone()
                };
                self.set(back);
            } else if refused && let Some(left) = &mut self.faults.return_after {
                *left -= 1;
            }
        }
        !self.faults.gone
    }
}

/// Takes one off a countdown.
fn hit(left: &mut u64) -> bool {
    let was = *left;
    *left = was.saturating_sub(1);
    was > 0
}

impl Control {
    pub(super) fn new(faults: Faults) -> Self {
        let now = Instant::now();
        Self {
            inner: Mutex::new(Inner {
                faults,
                generation: 1,
                gone_since: now,
                held: Vec::new(),
                in_flight: 0,
                most_in_flight: 0,
                link_free: now,
                last: None,
                closed: false,
            }),
            tally: Tally::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node is there to be looked up.
    pub(super) fn present(&self) -> bool {
        self.lock().present(false)
    }

    /// Opens the node: its generation, unless it is gone.
    pub(super) fn open(&self) -> Option<u64> {
        let mut inner = self.lock();
        inner.present(true).then_some(inner.generation)
    }

    /// A descriptor of this generation still reaches the device.
    pub(super) fn reaches(&self, generation: u64) -> bool {
        let mut inner = self.lock();
        inner.present(true) && inner.generation == generation
    }

    pub(super) fn knows(&self, command: u32) -> bool {
        let inner = self.lock();
        (command == vsc_driver::uapi::CMD_LIST && inner.faults.knows_list)
            || (command == vsc_driver::uapi::CMD_UBUNTU && inner.faults.knows_ubuntu)
    }

    /// Takes a well-formed request and says what is to happen to it. Whoever gets a plan calls
    /// [`Control::done`].
    pub(super) fn admit(&self, request: &RequestSync) -> Result<Plan, Reject> {
        let mut inner = self.lock();
        if inner.closed || inner.faults.gone {
            return Err(Reject::Gone);
        }
        if inner.faults.gone_after == Some(0) {
            inner.remove();
            return Err(Reject::Gone);
        }
        if hit(&mut inner.faults.deny_next) {
            return Err(Reject::Denied);
        }
        let probability = inner.faults.eagain_probability.clamp(0.0, 1.0);
        let full = inner.faults.ring > 0 && inner.in_flight >= inner.faults.ring;
        if full || hit(&mut inner.faults.eagain_next) || (probability > 0.0 && rand::random_bool(probability))
        {
            return Err(Reject::Full);
        }
        if let Some(left) = &mut inner.faults.gone_after {
            *left -= 1;
        }
        inner.in_flight += 1;
        inner.most_in_flight = inner.most_in_flight.max(inner.in_flight);
        inner.last = Some(*request);
        let faults = &mut inner.faults;
        let mut plan = Plan {
            late: hit(&mut faults.late_next).then_some(Duration::from_millis(faults.late_ms)),
            hold: None,
            postpone: None,
            spoil: hit(&mut faults.spoil_next).then_some(faults.spoil),
            status: hit(&mut faults.status_next).then_some(faults.status),
            silent: hit(&mut faults.silent_next),
            behind: hit(&mut faults.behind_next).then_some(faults.behind),
            refuse_rest: faults.refuse_rest,
            latency: Duration::from_micros(faults.latency_us),
        };
        if hit(&mut faults.hold_next) {
            let (release, held) = oneshot::channel();
            inner.held.push(release);
            plan.hold = Some(held);
        }
        if hit(&mut inner.faults.postpone_next) {
            let (release, held) = oneshot::channel();
            inner.held.push(release);
            plan.postpone = Some(held);
        }
        Ok(plan)
    }

    /// Time until `bytes` have gone over the shared link.
    pub(super) fn transfer(&self, bytes: usize) -> Duration {
        let mut inner = self.lock();
        let now = Instant::now();
        match inner.faults.bytes_per_second {
            0 => Duration::ZERO,
            speed => {
                let took = Duration::from_secs_f64(bytes as f64 / speed as f64);
                inner.link_free = inner.link_free.max(now) + took;
                inner.link_free - now
            }
        }
    }

    pub(super) fn done(&self) {
        self.lock().in_flight -= 1;
    }

    pub(super) fn last(&self) -> Option<RequestSync> {
        self.lock().last
    }

    pub(super) fn release(&self) -> usize {
        let held = std::mem::take(&mut self.lock().held);
        // Those that are gone already (runtime ended) do not count.
        held.into_iter()
            .filter_map(|request| request.send(()).ok())
            .count()
    }

    /// Takes nothing any more and lets held requests go.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.release();
    }

    pub(super) fn counters(&self) -> Counters {
        let inner = self.lock();
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            requests: get(&self.tally.requests),
            open: get(&self.tally.open),
            read: get(&self.tally.read),
            close: get(&self.tally.close),
            rest: get(&self.tally.rest),
            unknown: get(&self.tally.unknown),
            bytes_in: get(&self.tally.bytes_in),
            bytes_out: get(&self.tally.bytes_out),
            eagain: get(&self.tally.eagain),
            enodev: get(&self.tally.enodev),
            refused: get(&self.tally.refused),
            held: inner.held.iter().filter(|request| !request.is_closed()).count() as u64,
            in_flight: inner.in_flight,
            most_in_flight: inner.most_in_flight,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control() -> FaultControl {
        FaultControl {
            state: Arc::new(Control::new(Faults::default())),
        }
    }

    #[test]
    fn commands_change_what_they_name_and_nothing_else() {
        let faults = control();
        faults
            .command("eagain_next=3 spoil=magic spoil_next=1\n")
            .unwrap();
        faults.command(r#"{"late_ms": 250, "gone_after": 7}"#).unwrap();
        let expected = Faults {
            eagain_next: 3,
            spoil: Spoil::Magic,
            spoil_next: 1,
            late_ms: 250,
            gone_after: Some(7),
            ..Faults::default()
        };
        assert_eq!(faults.get(), expected);
        for bad in [
            "nonsense",
            "eagain=1",
            "eagain_next=-1",
            "eagain_next=many",
            "{",
            r#"{"x":1}"#,
            "spoil=all",
        ] {
            let error = faults.command(bad).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{bad}");
            assert_eq!(faults.get(), expected, "{bad} changed something");
        }
        faults.command("reset").unwrap();
        assert_eq!(faults.get(), Faults::default());
    }

    #[test]
    fn a_returning_device_is_a_new_node() {
        let faults = control();
        let state = &faults.state;
        let first = state.open().unwrap();
        assert!(state.reaches(first));
        faults.update(|f| {
            f.gone = true;
            f.return_after = Some(2);
        });
        assert!(!state.present(), "a look does not count as a refused call");
        assert!(!state.reaches(first));
        assert_eq!(state.open(), None);
        let second = state.open().unwrap();
        assert_ne!(first, second);
        assert!(!state.reaches(first) && state.reaches(second));
    }

    #[test]
    fn removal_after_a_number_of_requests() {
        let faults = control();
        faults.update(|f| f.gone_after = Some(2));
        let request = RequestSync::default();
        assert!(faults.state.admit(&request).is_ok());
        assert!(faults.state.admit(&request).is_ok());
        assert_eq!(faults.state.admit(&request).unwrap_err(), Reject::Gone);
        assert!(faults.get().gone);
    }

    #[test]
    fn the_ring_is_full_at_its_size() {
        let faults = control();
        faults.update(|f| f.ring = 1);
        let request = RequestSync::default();
        assert!(faults.state.admit(&request).is_ok());
        assert_eq!(faults.state.admit(&request).unwrap_err(), Reject::Full);
        faults.state.done();
        assert!(faults.state.admit(&request).is_ok());
    }
}
