//! Fuzz targets: whatever stands in the memory that a predecessor has left. Journals that are kept have a
//! length, a tag and the fields of each record.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use super::codec::{CRC, Fields, decode, encode};
use super::log::Log;

/// Where the records of a new log start.
const START: u64 = 4096;

/// Gives bytes the form of records: the first byte is how many follow, and their checksum is right.
fn framed(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some((len, rest)) = bytes.split_first() {
        let (body, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&CRC.checksum(body).to_le_bytes());
        out.extend_from_slice(body);
        bytes = rest;
    }
    out
}

/// A successor opens what is there, goes on with it, and says the same after it was written anew.
fn taken_over(records: &[u8]) {
    let written = Log::create().unwrap();
    let file = File::from(written.memfd().try_clone_to_owned().unwrap());
    file.write_all_at(records, START).unwrap();
    let (log, state) = Log::open(file.as_fd().try_clone_to_owned().unwrap()).unwrap();
    assert!(log.len() <= records.len() as u64);
    assert!(state.nodes.len() + state.handles.len() + state.dirty.len() <= records.len());
    let anew = Log::create().unwrap();
    anew.append(&state.records()).unwrap();
    assert_eq!(anew.state().unwrap(), state);
}

#[test]
fn records() {
    fuzzing::bytes(
        concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/journal"),
        &[],
        |bytes| {
            taken_over(bytes);
            let records = framed(bytes);
            taken_over(&records);
            let mut rest = Fields(&records);
            while let Some(record) = decode(&mut rest) {
                let mut again = Vec::new();
                encode(&record, &mut again);
                assert_eq!(decode(&mut Fields(&again)), Some(record));
            }
        },
    );
}

/// The slots that say where records start.
#[test]
fn headers() {
    fuzzing::each(|slots: &[(u64, u64); 2]| {
        let log = Log::create().unwrap();
        let file = File::from(log.memfd().try_clone_to_owned().unwrap());
        for (slot, (generation, start)) in slots.iter().enumerate() {
            let mut bytes = b"vscblobj\x01\0\0\0".to_vec();
            bytes.extend_from_slice(&generation.to_le_bytes());
            bytes.extend_from_slice(&start.to_le_bytes());
            bytes.extend_from_slice(&CRC.checksum(&bytes).to_le_bytes());
            file.write_all_at(&bytes, slot as u64 * 64).unwrap();
        }
        if let Ok((log, _)) = Log::open(file.as_fd().try_clone_to_owned().unwrap()) {
            // Where nothing can be appended, that is an error and no more.
            let _ = log.append(&[super::record::Record::Release { fh: 1 }]);
        }
    });
}
