//! What the channel's device keeps of requests that were given up, charged to the volume that sent them.

use std::any::Any;
use std::sync::{Arc, Weak};

use vsc_driver::channel::Ledger;

use super::ledger::{Budget, Kind};
use super::permit::Permit;
use super::share::Share;

/// A volume's books of it, which do not keep the volume.
#[derive(Debug)]
pub(crate) struct Losses {
    budget: Arc<Budget>,
    share: Weak<Share>,
}

impl Losses {
    pub(crate) fn of(share: &Arc<Share>) -> Arc<Self> {
        Arc::new(Self {
            budget: Arc::clone(&share.budget),
            share: Arc::downgrade(share),
        })
    }
}

impl Ledger for Losses {
    fn lost(&self, bytes: usize) -> Box<dyn Any + Send> {
        // Of a volume that has ended meanwhile it is the process's.
        let share = self.share.upgrade();
        Box::new(self.budget.lose(bytes, share.as_ref()))
    }
}

impl Budget {
    /// Charges what was lost. Nobody asks whether there is room; cached data makes some.
    fn lose(self: &Arc<Self>, bytes: usize, share: Option<&Arc<Share>>) -> Permit {
        let own = share.map(|share| &*share.own);
        self.lock().add(Kind::Lost, bytes, own);
        let permit = self.permit(Kind::Lost, bytes, share);
        self.shrink();
        permit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn what_a_device_lost_is_the_volumes_that_sent_it() {
        let budget = Budget::new(128 * MIB);
        let [loser, other] = [budget.join(), budget.join()];
        let losses = Losses::of(&loser);
        // As much as a volume may have of writes, but for half of what it loses.
        let much = budget.limits().0 / 4 * 3 - 8 * MIB;
        let lost = losses.lost(16 * MIB);
        assert_eq!(budget.usage().lost, 16 * MIB);
        assert!(loser.try_acquire(much).is_none());
        assert!(other.try_acquire(much).is_some());
        drop(lost);
        assert_eq!(budget.usage().lost, 0);
        assert!(loser.try_acquire(much).is_some());
    }

    #[test]
    fn what_returns_after_its_volume_has_ended_is_counted_until_then() {
        let budget = Budget::new(128 * MIB);
        let share = budget.join();
        let losses = Losses::of(&share);
        let before = losses.lost(MIB);
        drop(share);
        let after = losses.lost(2 * MIB);
        assert_eq!(budget.usage().lost, 3 * MIB);
        drop((before, after));
        assert_eq!(budget.usage().lost, 0);
    }
}
