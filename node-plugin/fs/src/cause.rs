//! Why an operation fails: on its way up an error becomes a number; what it said is kept for the operation's
//! one line of the log.

use std::cell::RefCell;
use std::error::Error;
use std::future::Future;

tokio::task_local! {
    static SCOPE: Scope;
}

/// One operation of a volume.
#[derive(Debug)]
struct Scope {
    volume: usize,
    cause: RefCell<Option<String>>,
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
pub(crate) async fn of<F: Future>(volume: usize, operation: F) -> (F::Output, Option<String>) {
    SCOPE
        .scope(Scope::new(volume), async {
            let output = operation.await;
            (output, SCOPE.with(|scope| scope.cause.take()))
        })
        .await
}

/// The same for what needs no waiting.
pub(crate) fn of_now<T>(volume: usize, operation: impl FnOnce() -> T) -> (T, Option<String>) {
    SCOPE.sync_scope(Scope::new(volume), || {
        let output = operation();
        (output, SCOPE.with(|scope| scope.cause.take()))
    })
}

/// Notes why the operation that runs here fails. False when none does: then nobody else will say it.
pub(crate) fn note(cause: impl FnOnce() -> String) -> bool {
    SCOPE
        .try_with(|scope| *scope.cause.borrow_mut() = Some(cause()))
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
        let say = |text: &'static str| note(|| text.to_owned());
        let inner = async {
            say("first");
            tokio::task::yield_now().await;
            (say("second"), volume())
        };
        let ((noted, volume_of_it), cause) = of(7, inner).await;
        assert_eq!((noted, volume_of_it, cause.as_deref()), (true, 7, Some("second")));
        assert_eq!(of_now(8, || say("now")), (true, Some("now".to_owned())));
        assert_eq!((say("nobody"), volume()), (false, 0));
    }
}
