//! The two paths of a request.

use std::fmt;

/// A path to the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Path {
    /// The accelerated channel.
    Channel,
    /// HTTPS (or plain HTTP, for emulators).
    Https,
}

impl Path {
    /// Its name in counters and errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Channel => "channel",
            Self::Https => "https",
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
