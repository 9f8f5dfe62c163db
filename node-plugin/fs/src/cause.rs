//! Why an operation fails: on its way up an error becomes a number; what it said is kept for the operation's
//! one line of the log.

use std::cell::RefCell;
use std::error::Error;
use std::fmt;
use std::future::Future;

tokio::task_local! {
    static SCOPE: Scope;
}

/// Why an operation fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    text: String,
    /// Somebody should know of it whatever number programs get: the number is one of every day, or says
    /// little.
    pub(crate) is_news: bool,
}

impl Cause {
    /// One that the log has whatever the number is.
    pub(crate) fn news(text: String) -> Self {
        Self { text, is_news: true }
    }
}

impl From<String> for Cause {
    fn from(text: String) -> Self {
        Self { text, is_news: false }
    }
}

impl From<&str> for Cause {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One operation of a volume.
#[derive(Debug)]
struct Scope {
    volume: usize,
    cause: RefCell<Option<Cause>>,
}

impl Scope {
    fn new(volume: usize) -> Self {
        Self {
            volume,
            cause: RefCell::new(None),
        }
    }
}

/// Runs an operation of a volume; what it gives, and the cause that was noted last.
pub(crate) async fn of<F: Future>(volume: usize, operation: F) -> (F::Output, Option<Cause>) {
    SCOPE
        .scope(Scope::new(volume), async {
            let output = operation.await;
            (output, SCOPE.with(|scope| scope.cause.take()))
        })
        .await
}

/// The same for what needs no waiting.
pub(crate) fn of_now<T>(volume: usize, operation: impl FnOnce() -> T) -> (T, Option<Cause>) {
    SCOPE.sync_scope(Scope::new(volume), || {
        let output = operation();
        (output, SCOPE.with(|scope| scope.cause.take()))
    })
}

/// Notes why the operation that runs here fails. False when none does: then nobody else will say it.
pub(crate) fn note<C: Into<Cause>>(cause: impl FnOnce() -> C) -> bool {
    SCOPE
        .try_with(|scope| *scope.cause.borrow_mut() = Some(cause().into()))
        .is_ok()
}

/// The volume whose operation runs here; 0 for none.
pub(crate) fn volume() -> usize {
    SCOPE.try_with(|scope| scope.volume).unwrap_or_default()
}

/// An error and what is behind it, without what it says itself of that.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(behind) = source {
        let said = behind.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = behind.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        #[source]
        behind: Option<Box<Layer>>,
    }

    fn layers(texts: &[&'static str]) -> Layer {
        let (text, rest) = texts.split_first().unwrap();
        Layer {
            text,
            behind: (!rest.is_empty()).then(|| Box::new(layers(rest))),
        }
    }

    #[test]
    fn a_chain_says_each_thing_once() {
        assert_eq!(chain(&layers(&["a", "b", "c"])), "a: b: c");
        assert_eq!(
            chain(&layers(&["cannot send: reset", "reset", "by peer"])),
            "cannot send: reset: by peer"
        );
    }

    #[tokio::test]
    async fn the_last_cause_of_an_operation_is_its_own() {
        let say = |text: &'static str| note(|| text);
        let inner = async {
            say("first");
            tokio::task::yield_now().await;
            (say("second"), volume())
        };
        let ((noted, volume_of_it), cause) = of(7, inner).await;
        assert_eq!((noted, volume_of_it, cause), (true, 7, Some("second".into())));
        assert_eq!(of_now(8, || say("now")), (true, Some("now".into())));
        assert_eq!((say("nobody"), volume()), (false, 0));
    }
}
