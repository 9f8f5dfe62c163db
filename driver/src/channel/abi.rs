//! The two numbers of the one command.

use serde::{Serialize, Serializer};

/// Which command number the device answered to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abi {
    /// 0xC04852F0: the number posted to the kernel list (v2-v5).
    List,
    /// 0xC048520A: Ubuntu's in-box module and the published Java library.
    Ubuntu,
}

impl Abi {
    /// One word for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Ubuntu => "ubuntu",
        }
    }
}

impl Serialize for Abi {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
