//! Secrets that never print, and that are overwritten when nobody needs them any more.

use std::fmt;

use zeroize::{Zeroize, Zeroizing};

/// A value whose `Debug` prints `***`, and whose memory is overwritten when it is dropped. Reach it with
/// [`Secret::expose`], in memory only.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T: Zeroize>(Zeroizing<T>);

impl<T: Zeroize> Secret<T> {
    /// Wraps a value.
    pub fn new(value: T) -> Self {
        Self(Zeroizing::new(value))
    }
    /// The value itself: never log it, never put it on a command line.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<T: Zeroize> From<T> for Secret<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    /// Notes that it was overwritten.
    struct Noted(Rc<Cell<bool>>);

    impl Zeroize for Noted {
        fn zeroize(&mut self) {
            self.0.set(true);
        }
    }

    #[test]
    fn a_secret_is_overwritten_when_it_is_dropped() {
        let overwritten = Rc::new(Cell::new(false));
        let secret = Secret::new(Noted(Rc::clone(&overwritten)));
        assert!(!secret.expose().0.get());
        drop(secret);
        assert!(overwritten.get());
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(format!("{:?}", Secret::new("canary".to_owned())), "***");
    }
}
