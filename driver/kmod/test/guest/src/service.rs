//! The service behind the device: fills and sums data, or lets a case hold, delay and spoil requests.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::host::{Host, Packet};
use crate::system::{soon, wait_until};

/// What the service does with the next packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Executes and answers.
    Serve,
    /// Keeps it for the case to [`Service::take`].
    Hold,
    /// Leaves it in the ring (the first packet after the switch is taken out and waits).
    Pause,
}

/// What a client may ask for, the first 16 bytes of the request buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Task {
    /// Fill the whole data buffer with the pattern of this seed.
    Fill(u64),
    /// Tell the checksum of the valid bytes.
    Sum,
    /// Fail with this status.
    Fail(u32),
}

const MAGIC: u32 = 0x617a_6276;

impl Task {
    /// As sent.
    pub(crate) fn encode(self) -> [u8; 16] {
        let (kind, argument) = match self {
            Self::Fill(seed) => (1u32, seed),
            Self::Sum => (2, 0),
            Self::Fail(status) => (3, status.into()),
        };
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&argument.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let [a, b, c, d, e, f, g, h, rest @ ..] = bytes else {
            bail!("request of {} bytes", bytes.len());
        };
        if u32::from_le_bytes([*a, *b, *c, *d]) != MAGIC {
            bail!("request without magic");
        }
        let argument = u64::from_le_bytes(rest.get(..8).context("short request")?.try_into()?);
        match u32::from_le_bytes([*e, *f, *g, *h]) {
            1 => Ok(Self::Fill(argument)),
            2 => Ok(Self::Sum),
            3 => Ok(Self::Fail(argument as u32)),
            other => bail!("unknown task {other}"),
        }
    }
}

/// The pattern of a seed: differs at every 8 bytes and for every seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut state = seed ^ 0x9E37_79B9_7F4A_7C15;
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A checksum that depends on every byte and its place.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    let mut sum = 0xCBF2_9CE4_8422_2325 ^ bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        sum = (sum ^ u64::from_le_bytes(word))
            .wrapping_mul(0x0000_0100_0000_01B3)
            .rotate_left(29);
    }
    sum
}

#[derive(Debug)]
struct State {
    mode: Mode,
    held: Vec<Packet>,
    /// Ids that a case has taken since the last [`Service::let_go`]; it may have answered them or not.
    taken: Vec<u64>,
    /// One packet has been taken out and waits for the mode to change.
    stalled: bool,
    /// What went wrong on the host's side; fails the case.
    trouble: Vec<String>,
}

#[derive(Debug)]
struct Shared {
    host: Host,
    state: Mutex<State>,
    changed: Condvar,
}

/// A running service.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    shared: Arc<Shared>,
}

impl Service {
    /// Starts serving.
    pub(crate) fn start(host: Host) -> Self {
        let shared = Arc::new(Shared {
            host,
            state: Mutex::new(State {
                mode: Mode::Serve,
                held: Vec::new(),
                taken: Vec::new(),
                stalled: false,
                trouble: Vec::new(),
            }),
            changed: Condvar::new(),
        });
        let service = Self { shared };
        let worker = service.clone();
        std::thread::spawn(move || worker.work());
        service
    }

    /// The host below.
    pub(crate) fn host(&self) -> &Host {
        &self.shared.host
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Switches the mode.
    pub(crate) fn set(&self, mode: Mode) {
        self.state().mode = mode;
        self.shared.changed.notify_all();
    }

    fn work(&self) {
        loop {
            let packet = match self.host().next() {
                Ok(packet) => packet,
                Err(error) => {
                    self.complain(format!("{error:#}"));
                    continue;
                }
            };
            let mut state = self.state();
            while state.mode == Mode::Pause {
                state.stalled = true;
                state = self
                    .shared
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            state.stalled = false;
            if state.mode == Mode::Hold {
                state.held.push(packet);
                self.shared.changed.notify_all();
                continue;
            }
            drop(state);
            if let Err(error) = self.serve(&packet) {
                self.complain(format!("{error:#}"));
                // The caller must not wait for ever; its case fails by the complaint.
                if let Err(error) = self.host().answer(packet.id, u32::MAX, 0) {
                    self.complain(format!("{error:#}"));
                }
            }
        }
    }

    fn complain(&self, what: String) {
        println!("service: {what}");
        self.state().trouble.push(what);
    }

    /// What went wrong since the last call.
    pub(crate) fn trouble(&self) -> Vec<String> {
        std::mem::take(&mut self.state().trouble)
    }

    /// Executes one request and answers it.
    pub(crate) fn serve(&self, packet: &Packet) -> Result<()> {
        let (status, response_len) = self.execute(packet)?;
        self.host().answer(packet.id, status, response_len)
    }

    /// Executes one request: the status and the bytes of the response.
    pub(crate) fn execute(&self, packet: &Packet) -> Result<(u32, u32)> {
        let host = self.host();
        let request = host.read(packet, packet.request.0, packet.request.1)?;
        let sum = match Task::decode(&request)? {
            Task::Fill(seed) => {
                let bytes = pattern(seed, packet.data.1 as usize);
                host.write(packet, packet.data.0, &bytes)?;
                checksum(&bytes)
            }
            Task::Sum => checksum(&host.read(packet, packet.data.0, packet.data_valid)?),
            Task::Fail(status) => return Ok((status, 0)),
        };
        host.write(packet, packet.response.0, &sum.to_le_bytes())?;
        Ok((0, 8))
    }

    /// Waits until the paused service has taken out its one packet: from then on the ring only fills.
    pub(crate) fn wait_stalled(&self) -> Result<()> {
        wait_until("the service to stall", soon(), || self.state().stalled)
    }

    /// Waits until `n` requests are held, and takes them.
    pub(crate) fn take(&self, n: usize) -> Result<Vec<Packet>> {
        let end = Instant::now() + soon();
        let mut state = self.state();
        while state.held.len() < n {
            let left = end.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                bail!(
                    "{} of {n} requests reached the host in {:?}",
                    state.held.len(),
                    soon()
                );
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        let taken: Vec<Packet> = state.held.drain(..n).collect();
        state.taken.extend(taken.iter().map(|packet| packet.id));
        Ok(taken)
    }

    /// The one request that is held.
    pub(crate) fn take_one(&self) -> Result<Packet> {
        self.take(1)?.pop().context("no request held")
    }

    /// Ends whatever a failed case has left with the host.
    pub(crate) fn let_go(&self) {
        self.set(Mode::Serve);
        let left = {
            let mut state = self.state();
            let mut left = std::mem::take(&mut state.taken);
            left.extend(state.held.drain(..).map(|packet| packet.id));
            left
        };
        for id in left {
            // An id that was answered before is unknown by now, and a channel may be gone.
            if let Err(error) = self.host().answer(id, u32::MAX, 0) {
                println!("service: {error:#}");
                break;
            }
        }
    }

    /// A new case: what the former one has taken, it has answered.
    pub(crate) fn begin(&self) {
        self.set(Mode::Serve);
        self.state().taken.clear();
    }

    /// Whether nothing is held.
    pub(crate) fn is_idle(&self) -> bool {
        self.state().held.is_empty()
    }
}
