//! What goes wrong on the way to a service, and to which connections and requests.

use std::time::Duration;

use http::Method;

use super::wire::Head;

/// What happens to a connection, or to a request and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nobody listens: connections are refused.
    Refused,
    /// Connections are accepted, and nothing ever comes.
    Mute,
    /// Connections are reset when the TLS handshake begins.
    HandshakeReset,
    /// The certificate is one that nobody trusts.
    WrongCertificate,
    /// Received, not executed, never answered; the connection stays.
    Silent,
    /// The connection is reset in the middle of the request, which is not executed.
    RequestReset,
    /// Received and not executed; this side of the connection is closed, the other is read on.
    HalfClosed,
    /// Not executed; somebody answers.
    Answered(Canned),
    /// Executed, and answered by somebody all the same.
    AnsweredAfter(Canned),
    /// Not executed; answered before its body is read, then the connection is closed.
    Early(Canned),
    /// Executed; the connection is reset within the head of the answer.
    HeadReset,
    /// Executed; the connection is reset within the answer's body, or after its head when it has none.
    BodyReset,
    /// Executed; the connection is closed within the answer's body, in order.
    BodyClosed,
    /// Executed; the connection is closed without an answer.
    Lost,
    /// Executed; half of the body, with a length that admits it.
    Short,
    /// Executed; more than the body, with a length that admits it.
    Long,
    /// Executed and answered after this long.
    Slow(Duration),
    /// Executed; the answer comes in pieces of so many bytes, with pauses.
    Trickle(usize, Duration),
    /// Executed and answered; then the connection is closed, which nobody has said before.
    ClosedAfter,
    /// Executed by a service whose clock is ahead by this.
    ClockAhead(Duration),
    /// Executed twice, answered once (the first).
    Doubled,
    /// The connection is reset, and the request executed this long after it, or when all is well again.
    Late(Duration),
}

impl Fault {
    /// It concerns connections, not single requests.
    pub(super) fn is_of_connections(&self) -> bool {
        matches!(
            self,
            Self::Refused | Self::Mute | Self::HandshakeReset | Self::WrongCertificate
        )
    }

    /// Whoever it hit waits still when it is over.
    pub(super) fn hangs(&self) -> bool {
        matches!(self, Self::Mute | Self::Silent)
    }
}

/// An answer that is not what the service would have said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canned {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Canned {
    /// As the service says it, with its headers.
    pub fn of_the_service(status: u16, code: &str) -> Self {
        Self {
            status,
            headers: vec![
                ("x-ms-request-id".into(), "0000".into()),
                ("x-ms-error-code".into(), code.into()),
                ("content-type".into(), "application/xml".into()),
            ],
            body: format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>"),
        }
    }

    /// As a proxy says it that knows nothing of the service.
    pub fn of_a_proxy(status: u16) -> Self {
        Self {
            status,
            headers: vec![
                ("server".into(), "gateway".into()),
                ("content-type".into(), "text/html".into()),
            ],
            body: format!("<html><body><h1>{status}</h1></body></html>"),
        }
    }

    /// With one more header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// Which of those that a rule is about it hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// All.
    Always,
    /// Each n-th.
    Each(u64),
    /// Those beyond so many in a second.
    Above(u64),
    /// Those that come so long after the first that the rule is about, and no longer after it.
    Between(Duration, Duration),
    /// Those on each n-th connection.
    OnEach(u64),
}

/// Which requests a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Only {
    /// All.
    Everything,
    /// Those that read content.
    Reads,
    /// Those answered with a list in XML, of blobs or of blocks.
    Lists,
    /// Those with a body.
    Bodies,
}

impl Only {
    pub(super) fn admits(self, head: &Head) -> bool {
        let list = head.target.contains("comp=list") || head.target.contains("comp=blocklist");
        match self {
            Self::Everything => true,
            Self::Reads => head.method == Method::GET && !head.target.contains("comp="),
            Self::Lists => head.method == Method::GET && list,
            Self::Bodies => head.length > 0,
        }
    }
}

/// One fault, and whom it hits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What happens.
    pub fault: Fault,
    /// To which of them.
    pub when: When,
    /// Of these.
    pub only: Only,
}

impl Rule {
    /// To all requests, or connections.
    pub fn all(fault: Fault) -> Self {
        Self {
            fault,
            when: When::Always,
            only: Only::Everything,
        }
    }

    /// To each n-th request.
    pub fn each(n: u64, fault: Fault) -> Self {
        Self {
            when: When::Each(n),
            ..Self::all(fault)
        }
    }

    /// The same for these requests only.
    pub fn only(self, only: Only) -> Self {
        Self { only, ..self }
    }
}
