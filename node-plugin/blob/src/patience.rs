//! How long anybody waits for work that makes no progress.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

/// How long anybody waits for work that makes no progress: a volume's option `timeout`. Every clock of the
/// volume follows from it here (docs/semantics.md, "How long things wait"); work that makes progress has
/// none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience(Duration);

/// A text that is no [`Patience`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a time from 1s to 1h, as 60s, 1500ms or 2m")]
pub struct NoPatience;

impl Patience {
    /// The least that a volume may be given: an attempt then has less than half a second for its answer.
    pub const LEAST: Duration = Duration::from_secs(1);
    /// The most: nobody can end a program that waits in the kernel.
    pub const MOST: Duration = Duration::from_secs(3600);

    /// Any time; what users say is read by [`FromStr`], which knows the limits.
    pub const fn of(timeout: Duration) -> Self {
        Self(timeout)
    }

    /// Whoever waits for an operation, or for room for what it writes.
    pub const fn whole(self) -> Duration {
        self.0
    }

    /// A call to the service, its repetitions included: less than the whole, so that its error, which says
    /// why, comes before whoever waits for it has gone.
    pub fn call(self) -> Duration {
        self.0 / 10 * 9
    }

    /// After work that got no answer: who wants the same so shortly afterwards is not kept waiting for that
    /// anew.
    pub fn again(self) -> Duration {
        (self.0 / 4).min(Duration::from_secs(2))
    }

    /// One attempt of a call. Who has waited that long in vain does not ask once more what became of it.
    pub fn attempt(self) -> Duration {
        self.call() / 2
    }
}

impl Default for Patience {
    /// A minute.
    fn default() -> Self {
        Self(Duration::from_secs(60))
    }
}

impl fmt::Display for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match millis % 1000 {
            0 => write!(f, "{}s", millis / 1000),
            _ => write!(f, "{millis}ms"),
        }
    }
}

impl FromStr for Patience {
    type Err = NoPatience;

    /// A whole number of seconds, or of what stands behind it: `ms`, `s`, `m`, `h`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| NoPatience)?;
        let millis = match unit {
            "ms" => 1,
            "" | "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(NoPatience),
        };
        let timeout = Duration::from_millis(number.checked_mul(millis).ok_or(NoPatience)?);
        match (Self::LEAST..=Self::MOST).contains(&timeout) {
            true => Ok(Self(timeout)),
            false => Err(NoPatience),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_shown() {
        for (text, shown) in [
            ("1", "1s"),
            ("60s", "60s"),
            ("1500ms", "1500ms"),
            ("2m", "120s"),
            ("1h", "3600s"),
        ] {
            assert_eq!(text.parse::<Patience>().unwrap().to_string(), shown);
        }
        for wrong in [
            "",
            "s",
            "0",
            "999ms",
            "61m",
            "2h",
            "1.5s",
            "-1",
            " 1",
            "1 s",
            "1d",
            "99999999999999999999",
        ] {
            assert_eq!(wrong.parse::<Patience>(), Err(NoPatience), "{wrong:?}");
        }
        assert_eq!(Patience::default().to_string().parse(), Ok(Patience::default()));
    }

    #[test]
    fn what_says_why_comes_first() {
        for timeout in [Patience::LEAST, Patience::default().whole(), Patience::MOST] {
            let patience = Patience::of(timeout);
            assert!(patience.attempt() * 2 <= patience.call() && patience.call() < patience.whole());
        }
    }
}
