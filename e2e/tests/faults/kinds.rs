//! The table, written down before its cells are run: each kind of fault, what an operation may answer while
//! it lasts, who waits, and what is there afterwards. docs/semantics.md shows it.

use std::time::Duration;

use blob_client::Patience;
use e2e::proxy::{Canned, Fault, Only, Rule, When};
use e2e::vsp::{Behind, Faults, Spoil};
use nix::errno::Errno;

/// How a kind of fault is brought about.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Means {
    /// By the relay in front of the service.
    Relay(fn() -> Rule),
    /// The service's name is not known any more, and the connections there were are gone.
    Names,
    /// By the channel's device, or by the host behind it.
    Channel(fn(&mut Faults)),
}

/// Errnos that a kind of operation may answer, beside that it works.
pub(crate) type Errnos = &'static [Errno];

/// Kinds of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// open, stat, readdir
    Look,
    /// read
    Read,
    /// write
    Write,
    /// fsync, close
    Store,
    /// mkdir, rmdir, rename, unlink, truncate, chmod
    Change,
}

/// Who waits for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    /// Until a repetition is answered.
    Repetition,
    /// As long as the service asks for.
    Asked,
    /// Until `timeout` is over.
    Timeout,
    /// Nobody: it fails at once.
    Nobody,
}

/// What is there when the fault is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// Everything that was done.
    Done,
    /// What was written, whatever close said; where another operation failed, what was there or what was
    /// asked for.
    Written,
}

/// What an operation that changes names or attributes leaves when it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    /// What was there, now and later: no request reaches the service, and nobody sends one when it is back.
    Nothing,
    /// What was there, what was asked for, or something between: requests may have been carried out.
    Something,
}

/// What programs see of a kind of fault.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    look: Errnos,
    read: Errnos,
    write: Errnos,
    store: Errnos,
    change: Errnos,
    pub(crate) waits: Waits,
    pub(crate) after: After,
    pub(crate) failed: Failed,
}

impl Outcome {
    /// What such an operation may answer, beside that it works.
    pub(crate) fn of(&self, operation: Operation) -> Errnos {
        match operation {
            Operation::Look => self.look,
            Operation::Read => self.read,
            Operation::Write => self.write,
            Operation::Store => self.store,
            Operation::Change => self.change,
        }
    }
}

const EIO: Errnos = &[Errno::EIO];

/// A repetition helps.
const WORKS: Outcome = Outcome {
    look: &[],
    read: &[],
    write: &[],
    store: &[],
    change: &[],
    waits: Waits::Repetition,
    after: After::Done,
    failed: Failed::Something,
};
/// Nothing helps, and it is tried for a while.
const OUTAGE: Outcome = Outcome {
    look: EIO,
    read: EIO,
    write: &[],
    store: EIO,
    change: EIO,
    waits: Waits::Timeout,
    after: After::Written,
    failed: Failed::Nothing,
};
/// Nothing helps, and that is clear at once.
const REFUSED: Outcome = Outcome {
    waits: Waits::Nobody,
    ..OUTAGE
};

/// A kind of fault: a row of the table, and a cell of the test.
#[derive(Debug, Clone)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// For people.
    pub(crate) what: &'static str,
    pub(crate) means: Means,
    pub(crate) outcome: Outcome,
    /// How often each step of the model is taken.
    pub(crate) rounds: usize,
    /// How long the mount waits for work that makes no progress, where a minute is too long for a test.
    pub(crate) timeout: Option<&'static str>,
    /// Much is asked for at once, and what the service is asked for that is counted.
    pub(crate) loaded: bool,
}

/// How long anybody waits for work that makes no progress, where a minute is too long for a test. Not where
/// some requests fail and a repetition helps: an operation can be among them several times, and then needs
/// more of them than fit into that.
const TIMEOUT: &str = "2s";
/// Where a request that is given up has to leave time for another path, or a pause for what comes after it.
const LONGER: &str = "10s";
/// How often a path can have to wait. The kernel has one change of a folder at a time and lets nobody look a
/// name up beside it, and who looks names up, changes the folder and renames has each to find out for itself
/// that nobody answers (docs/semantics.md).
const IN_A_FOLDER: u32 = 3;

impl Kind {
    /// The longest that an operation may wait; `asked`: so often the service has asked for a second so far.
    pub(crate) fn longest(&self, operation: Operation, asked: u32) -> Duration {
        let patience = self
            .timeout
            .map_or_else(Patience::default, |text| text.parse().expect("a time"));
        let once = match self.outcome.waits {
            Waits::Nobody => Duration::ZERO,
            Waits::Asked => patience.whole() + Duration::from_secs(1) * asked,
            Waits::Repetition | Waits::Timeout => patience.whole(),
        };
        match operation {
            Operation::Look | Operation::Change => once * IN_A_FOLDER,
            Operation::Read | Operation::Write | Operation::Store => once,
        }
    }

    fn quick(self) -> Self {
        Self {
            timeout: Some(TIMEOUT),
            ..self
        }
    }

    fn longer(self) -> Self {
        Self {
            timeout: Some(LONGER),
            ..self
        }
    }
}

fn some(name: &'static str, what: &'static str, rule: fn() -> Rule) -> Kind {
    Kind {
        name,
        what,
        means: Means::Relay(rule),
        outcome: WORKS,
        rounds: 2,
        timeout: None,
        loaded: false,
    }
}

fn outage(name: &'static str, what: &'static str, rule: fn() -> Rule) -> Kind {
    Kind {
        outcome: OUTAGE,
        rounds: 1,
        timeout: Some(TIMEOUT),
        ..some(name, what, rule)
    }
}

fn channel(name: &'static str, what: &'static str, fault: fn(&mut Faults)) -> Kind {
    Kind {
        means: Means::Channel(fault),
        rounds: 1,
        timeout: Some(TIMEOUT),
        ..some(name, what, || Rule::all(Fault::ClosedAfter))
    }
}

fn proxy_says(status: u16) -> Rule {
    Rule::all(Fault::Answered(Canned::of_a_proxy(status)))
}

fn spoil(faults: &mut Faults, spoil: Spoil) {
    faults.spoil = spoil;
    faults.spoil_next = 6;
}

fn behind(faults: &mut Faults, behind: Behind) {
    faults.behind = behind;
    faults.behind_next = 6;
}

/// Over HTTPS, those first that take longest.
pub(crate) fn over_https() -> Vec<Kind> {
    vec![
        outage("refused", "nobody listens at the service's address", || {
            Rule::all(Fault::Refused)
        }),
        outage("silent", "requests are received and never answered", || {
            Rule::all(Fault::Silent)
        }),
        outage("mute", "connections are taken, and nothing ever comes", || {
            Rule::all(Fault::Mute)
        }),
        Kind {
            loaded: true,
            ..outage(
                "handshake_reset",
                "connections are reset at the TLS handshake",
                || Rule::all(Fault::HandshakeReset),
            )
        },
        Kind {
            outcome: REFUSED,
            ..outage("wrong_certificate", "a certificate that is not trusted", || {
                Rule::all(Fault::WrongCertificate)
            })
        },
        Kind {
            means: Means::Names,
            ..outage(
                "names_gone",
                "DNS does not know the service's name any more",
                || Rule::all(Fault::ClosedAfter),
            )
        },
        Kind {
            loaded: true,
            ..outage(
                "busy",
                "503 `ServerBusy` to everything, without `Retry-After`",
                || Rule::all(Fault::Answered(Canned::of_the_service(503, "ServerBusy"))),
            )
        },
        outage("failing", "500 to everything, of the service", || {
            Rule::all(Fault::Answered(Canned::of_the_service(500, "InternalError")))
        }),
        Kind {
            loaded: true,
            ..outage("foreign_404", "a proxy says 404 to everything", || {
                proxy_says(404)
            })
        },
        outage("foreign_412", "a proxy says 412 to everything", || {
            proxy_says(412)
        }),
        outage("foreign_407", "a proxy wants a password (407)", || {
            proxy_says(407)
        }),
        outage("foreign_400", "a proxy takes nothing for a request (400)", || {
            proxy_says(400)
        }),
        Kind {
            outcome: Outcome {
                look: &[],
                read: &[],
                // What has no body is carried out.
                failed: Failed::Something,
                ..OUTAGE
            },
            ..outage(
                "foreign_413",
                "a proxy finds each request with a body too large (413)",
                || proxy_says(413).only(Only::Bodies),
            )
        },
        Kind {
            loaded: true,
            ..outage("foreign_502", "a proxy reaches nobody (502)", || proxy_says(502))
        },
        Kind {
            outcome: Outcome {
                waits: Waits::Asked,
                ..WORKS
            },
            rounds: 1,
            timeout: Some(LONGER),
            ..some(
                "busy_with_a_pause",
                "each tenth request: 503 with `Retry-After: 1`",
                || {
                    let busy = Canned::of_the_service(503, "ServerBusy").header("retry-after", "1");
                    Rule::each(10, Fault::Answered(busy))
                },
            )
        },
        Kind {
            rounds: 1,
            ..some("throttled", "503 to all requests above ten in a second", || {
                Rule {
                    when: When::Above(10),
                    ..Rule::all(Fault::Answered(Canned::of_the_service(503, "ServerBusy")))
                }
            })
        },
        some("too_many", "each fifth request: 429", || {
            Rule::each(5, Fault::Answered(Canned::of_the_service(429, "TooManyRequests")))
        }),
        Kind {
            rounds: 1,
            ..some(
                "late",
                "each fourth request is executed a second after its connection was reset",
                || Rule::each(4, Fault::Late(Duration::from_secs(1))),
            )
        },
        Kind {
            rounds: 3,
            timeout: Some(LONGER),
            ..some(
                "for_a_second",
                "from 20 ms to 1 s on: every connection is reset at its next request",
                || Rule {
                    when: When::Between(Duration::from_millis(20), Duration::from_secs(1)),
                    ..Rule::all(Fault::RequestReset)
                },
            )
        },
        Kind {
            rounds: 3,
            timeout: Some(LONGER),
            ..some(
                "busy_for_a_second",
                "from 20 ms to 1 s on: 503 to everything",
                || Rule {
                    when: When::Between(Duration::from_millis(20), Duration::from_secs(1)),
                    ..Rule::all(Fault::Answered(Canned::of_the_service(503, "ServerBusy")))
                },
            )
        },
        some(
            "half_of_the_connections_reset",
            "each second connection is reset at the TLS handshake",
            || Rule::each(2, Fault::HandshakeReset),
        ),
        some(
            "half_of_the_connections_break",
            "each second connection is reset within each answer's body",
            || Rule {
                when: When::OnEach(2),
                ..Rule::all(Fault::BodyReset)
            },
        ),
        Kind {
            outcome: Outcome {
                // A repetition can meet another one of them.
                failed: Failed::Something,
                ..OUTAGE
            },
            rounds: 1,
            timeout: Some(TIMEOUT),
            ..some(
                "half_of_the_connections_dead",
                "nothing is ever answered on each second connection",
                || Rule {
                    when: When::OnEach(2),
                    ..Rule::all(Fault::Silent)
                },
            )
        },
        some("trickling", "answers come in drops", || {
            Rule::all(Fault::Trickle(2048, Duration::from_millis(5)))
        })
        .quick(),
        some("slow", "each answer takes 40 ms more", || {
            Rule::all(Fault::Slow(Duration::from_millis(40)))
        })
        .quick(),
        some("request_reset", "each third request: reset within it", || {
            Rule::each(3, Fault::RequestReset)
        }),
        some(
            "head_reset",
            "each third request: reset within the answer's head",
            || Rule::each(3, Fault::HeadReset),
        ),
        some(
            "body_reset",
            "each third request: reset within the answer's body",
            || Rule::each(3, Fault::BodyReset),
        ),
        some(
            "body_closed",
            "each third request: closed within the answer's body",
            || Rule::each(3, Fault::BodyClosed),
        ),
        some(
            "lost",
            "each third request: executed, and closed without an answer",
            || Rule::each(3, Fault::Lost),
        ),
        some(
            "half_closed",
            "each third request: the other side ends what it sends",
            || Rule::each(3, Fault::HalfClosed),
        ),
        some(
            "closed_after",
            "the connection is closed after each answer",
            || Rule::all(Fault::ClosedAfter),
        )
        .quick(),
        some(
            "error_before",
            "each third request: 500, and nothing was done",
            || Rule::each(3, Fault::Answered(Canned::of_the_service(500, "InternalError"))),
        ),
        some("error_after", "each third request: 500, and all was done", || {
            Rule::each(
                3,
                Fault::AnsweredAfter(Canned::of_the_service(500, "InternalError")),
            )
        }),
        some("foreign_403", "each third request: 403 of a proxy", || {
            Rule::each(3, Fault::Answered(Canned::of_a_proxy(403)))
        }),
        some(
            "redirected",
            "each third request: 302, to a page to log in at",
            || {
                let page = Canned::of_a_proxy(302).header("location", "https://login.test/");
                Rule::each(3, Fault::Answered(page))
            },
        ),
        some(
            "short",
            "each second read gets half, and a length that admits it",
            || Rule::each(2, Fault::Short).only(Only::Reads),
        ),
        some("long", "each second read gets more than there is", || {
            Rule::each(2, Fault::Long).only(Only::Reads)
        }),
        some(
            "cut_list",
            "each second list breaks off, with a length that admits it",
            || Rule::each(2, Fault::Short).only(Only::Lists),
        ),
        some("clock_ahead", "the service's clock is ten minutes ahead", || {
            Rule::all(Fault::ClockAhead(Duration::from_secs(600)))
        })
        .quick(),
        some("doubled", "each request is executed twice", || {
            Rule::all(Fault::Doubled)
        })
        .quick(),
        some(
            "expectation",
            "each third request with a body: 417 of a proxy, before the body",
            || Rule::each(3, Fault::Early(Canned::of_a_proxy(417))).only(Only::Bodies),
        ),
    ]
}

/// Over the channel, with HTTPS beside it.
pub(crate) fn of_the_channel() -> Vec<Kind> {
    vec![
        channel("held", "a request does not return", |faults| faults.hold_next = 1).longer(),
        channel(
            "postponed",
            "a request is executed long after it was given up",
            |faults| faults.postpone_next = 1,
        )
        .longer(),
        channel("late_answers", "answers come after their time", |faults| {
            faults.late_next = 3;
            faults.late_ms = 1500;
        })
        .longer(),
        channel("ring_full", "the ring is full for good", |faults| {
            faults.eagain_probability = 1.0
        })
        .longer(),
        channel(
            "ring_often_full",
            "the ring is full more often than not",
            |faults| {
                faults.eagain_probability = 0.7;
            },
        ),
        channel("gone", "the device is taken away", |faults| faults.gone = true),
        channel(
            "gone_and_back",
            "the device is taken away between requests, and comes back",
            |faults| {
                faults.gone_after = Some(10);
                faults.return_after = Some(3);
            },
        ),
        channel("checksum", "answers with a wrong checksum", |faults| {
            spoil(faults, Spoil::Crc)
        }),
        channel("magic", "answers with a wrong magic", |faults| {
            spoil(faults, Spoil::Magic)
        }),
        channel("not_json", "answers that are no JSON", |faults| {
            spoil(faults, Spoil::Json)
        }),
        channel("half_an_answer", "answers of which half is there", |faults| {
            spoil(faults, Spoil::Short)
        }),
        channel(
            "half_a_payload",
            "half of the payload, and an answer that admits it",
            |faults| {
                spoil(faults, Spoil::Data);
            },
        ),
        channel("earlier_answer", "the answer to an earlier request", |faults| {
            spoil(faults, Spoil::Unwritten);
        }),
        channel("no_sense", "the kernel module says `EPROTO`", |faults| {
            spoil(faults, Spoil::Protocol)
        }),
        channel(
            "host_status",
            "a status of the host that nobody knows",
            |faults| {
                spoil(faults, Spoil::Status);
            },
        ),
        channel("no_status", "the host gives no status", |faults| {
            faults.silent_next = 6
        }),
        channel("host_time_out", "the host gives requests up", |faults| {
            faults.status_next = 6
        }),
        channel(
            "unreachable_for_the_host",
            "the host does not reach the service",
            |faults| {
                behind(faults, Behind::Unreachable);
            },
        ),
        channel(
            "lost_by_the_host",
            "executed, and the host gets no answer",
            |faults| {
                behind(faults, Behind::Lost);
            },
        ),
        channel(
            "doubled_by_the_host",
            "the host has requests executed twice",
            |faults| {
                behind(faults, Behind::Doubled);
            },
        ),
        channel(
            "foreign_404_to_the_host",
            "a proxy says 404 to the host",
            |faults| {
                behind(faults, Behind::Foreign);
            },
        ),
    ]
}
