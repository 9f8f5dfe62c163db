//! FUSE connections of this machine: which one is mounted where, and how to end one whose server does not
//! answer.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};

/// The FUSE connection mounted at `path`, from mountinfo: stat would block on a mount that does not answer.
pub fn connection_at(path: &Path) -> Result<Option<u64>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let wanted = path.to_str().context("mount point is not UTF-8")?;
    Ok(table.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let device = fields.nth(2)?;
        (fields.nth(1)? == wanted).then(|| connection_of(device))?
    }))
}

/// The connection behind a device number as mountinfo writes it (`major:minor`).
pub fn connection_of(device: &str) -> Option<u64> {
    device.split_once(':')?.1.parse().ok()
}

/// Ends a connection: whoever waits for its server gets ENOTCONN.
pub fn abort(connection: u64) -> io::Result<()> {
    fs::write(format!("/sys/fs/fuse/connections/{connection}/abort"), "1")
}

/// How many requests of a connection are not answered yet, those that were not read included.
pub fn waiting(connection: u64) -> Result<usize> {
    let text = fs::read_to_string(format!("/sys/fs/fuse/connections/{connection}/waiting"))?;
    Ok(text.trim().parse()?)
}
