//! What a request prints in place of its secrets.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// Context key under which kubelet hands over tokens of the pod's service account (CSIDriver
/// `tokenRequests`). The interface does not mark volume contexts as secret, the tokens are all the same.
const POD_TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// Prints `***`.
pub(crate) struct Hidden;

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A volume context in the order of its keys, without the pod's tokens.
pub(crate) struct Context<'a>(pub(crate) &'a HashMap<String, String>);

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sorted: BTreeMap<_, _> = self.0.iter().collect();
        let mut map = f.debug_map();
        for (key, value) in sorted {
            if key.eq_ignore_ascii_case(POD_TOKENS) {
                map.entry(key, &Hidden);
            } else {
                map.entry(key, value);
            }
        }
        map.finish()
    }
}
