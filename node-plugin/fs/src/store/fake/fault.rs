//! What goes wrong with calls, when, and what was asked so far.

use std::collections::BTreeMap;

/// Kind of call, for counters and faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Op {
    Get,
    Head,
    Put,
    Stage,
    StageFrom,
    Commit,
    BlockList,
    SetMetadata,
    Delete,
    Copy,
    List,
    AcquireLease,
    RenewLease,
    ContainerMetadata,
    SetContainerMetadata,
}

impl Op {
    /// It changes what the container holds.
    pub fn changes(self) -> bool {
        match self {
            Self::Get | Self::Head | Self::BlockList | Self::List | Self::ContainerMetadata => false,
            Self::Put
            | Self::Stage
            | Self::StageFrom
            | Self::Commit
            | Self::SetMetadata
            | Self::Delete
            | Self::Copy
            | Self::AcquireLease
            | Self::RenewLease
            | Self::SetContainerMetadata => true,
        }
    }
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The service never sees it; the caller gets `Unreachable`.
    Lost,
    /// The service executes it, the answer is lost; the caller gets `DeadlineExceeded`.
    AnswerLost,
    /// The caller gives up (`DeadlineExceeded`) before the service has seen it. It is still on its way, and
    /// is executed after that many further calls.
    Late(u64),
    /// The service executes it and answers; a duplicate of it is on its way (what was sent twice because the
    /// first seemed lost), and is executed after that many further calls.
    Doubled(u64),
    /// The service executes it and answers with this status and code all the same.
    Executed(u16, &'static str),
    /// The service refuses with this status and code.
    Status(u16, &'static str),
    /// The caller panics.
    Panic,
}

/// What was asked so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls by kind, failed ones included.
    pub calls: BTreeMap<Op, u64>,
    /// Bytes read by `get`.
    pub bytes_out: u64,
    /// Bytes received by `put` and `stage`.
    pub bytes_in: u64,
    /// Most calls that were being executed at once.
    pub most_at_once: u64,
}

impl Counters {
    /// Calls of one kind.
    pub fn of(&self, op: Op) -> u64 {
        self.calls.get(&op).copied().unwrap_or(0)
    }
    /// Calls of all kinds.
    pub fn total(&self) -> u64 {
        self.calls.values().sum()
    }
}

/// The faults that are due.
#[derive(Debug, Default)]
pub(super) struct Plan {
    by_kind: Vec<(Op, Fault, u64)>,
    /// Calls of any kind that pass, calls that go wrong after them, and how.
    after: Option<(u64, u64, Fault)>,
    /// One of `after` went wrong.
    struck: bool,
}

impl Plan {
    pub(super) fn fail(&mut self, op: Op, fault: Fault, times: u64) {
        self.by_kind.push((op, fault, times));
    }

    pub(super) fn fail_after(&mut self, pass: u64, fault: Fault, times: u64) {
        self.after = Some((pass, times, fault));
        self.struck = false;
    }

    /// Takes back everything; see `FakeStore::heal`.
    pub(super) fn heal(&mut self) -> bool {
        self.by_kind.clear();
        self.after = None;
        std::mem::take(&mut self.struck)
    }

    /// What goes wrong with the next call.
    pub(super) fn next(&mut self, op: Op) -> Option<Fault> {
        let due = self.by_kind.iter_mut().find(|(o, _, n)| *o == op && *n > 0);
        if let Some((_, fault, times)) = due {
            *times -= 1;
            return Some(*fault);
        }
        match &mut self.after {
            Some((0, times, fault)) if *times > 0 => {
                *times -= 1;
                self.struck = true;
                Some(*fault)
            }
            Some((pass, _, _)) => {
                *pass = pass.saturating_sub(1);
                None
            }
            None => None,
        }
    }
}
