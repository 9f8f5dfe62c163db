//! The arena against the machine: addresses, flags of the mapping, memory taken and given back, a random
//! model.

use std::collections::HashMap;
use std::os::fd::AsRawFd;

use proptest::prelude::*;

use super::*;

const MIB: usize = 1 << 20;

/// Bytes of memory behind the memfd, as the kernel counts them.
fn backed(arena: &Arena) -> usize {
    nix::sys::stat::fstat(arena.memfd()).unwrap().st_blocks as usize * 512
}

fn is_shared(arena: &Arena, buffer: &Buffer) -> bool {
    let file = std::fs::File::open(format!("/proc/self/fd/{}", arena.memfd().as_raw_fd())).unwrap();
    let mut seen = vec![0; buffer.len()];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut seen, buffer.arena_offset()).unwrap();
    seen == buffer[..]
}

#[test]
fn secrets_do_not_stay_in_memory_that_is_handed_out_again() {
    let arena = Arena::new(64 * MIB).unwrap();
    for shortened in [2 * PAGE, 100] {
        let mut buffer = arena.alloc(2 * PAGE).unwrap();
        buffer.holds_secrets();
        buffer.fill(7);
        buffer.set_len(shortened);
        let at = buffer.arena_offset();
        drop(buffer);
        let again = arena.alloc(2 * PAGE).unwrap();
        assert_eq!(again.arena_offset(), at);
        assert!(again.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn buffers_are_page_aligned_on_separate_pages_and_of_their_class() {
    let arena = Arena::new(64 * MIB).unwrap();
    for (len, class) in [
        (1, PAGE),
        (PAGE, PAGE),
        (PAGE + 1, 2 * PAGE),
        (32 * 1024, 32 * 1024),
        (5 * MIB, 8 * MIB),
        (MAX_BUFFER, MAX_BUFFER),
    ] {
        let a = arena.alloc(len).unwrap();
        assert_eq!(a.len(), len);
        assert_eq!(a.capacity(), class);
        assert_eq!(a.as_ptr() as usize % PAGE, 0);
        assert_eq!(arena.usage().allocated, class);
        if class < MAX_BUFFER {
            let b = arena.alloc(len).unwrap();
            assert_ne!(a.as_ptr() as usize / PAGE, b.as_ptr() as usize / PAGE);
        }
    }
    assert_eq!(arena.usage().allocated, 0);
}

#[test]
fn every_page_is_present_before_first_use_and_only_those_asked_for() {
    let arena = Arena::new(64 * MIB).unwrap();
    assert_eq!(backed(&arena), 0, "an unused arena takes no memory");
    let mut buffer = arena.alloc(5 * MIB).unwrap();
    assert_eq!(backed(&arena), 5 * MIB);
    buffer.set_len(6 * MIB + 1);
    assert_eq!(buffer.len(), 6 * MIB + 1);
    assert_eq!(backed(&arena), 6 * MIB + PAGE);
    buffer.set_len(usize::MAX);
    assert_eq!(buffer.len(), 8 * MIB, "clamped to the class");
    // Present in the page table too, not only in the file: that is what the driver pins.
    let start = buffer.as_ptr() as u64 / PAGE as u64;
    let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
    for page in start..start + 2048 {
        let mut entry = [0; 8];
        std::os::unix::fs::FileExt::read_exact_at(&pagemap, &mut entry, page * 8).unwrap();
        assert_ne!(
            u64::from_le_bytes(entry) & 1 << 63,
            0,
            "page {page:#x} is not present"
        );
    }
}

#[test]
fn the_mapping_is_shared_and_not_inherited() {
    let arena = Arena::new(MIB).unwrap();
    let mut buffer = arena.alloc(10_000).unwrap();
    buffer.fill(0xA5);
    assert!(is_shared(&arena, &buffer));
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    let flags = smaps
        .lines()
        .find_map(|line| {
            if let Some((range, _)) = line.split_once(' ')
                && let Some((from, to)) = range.split_once('-')
                && let (Ok(from), Ok(to)) = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
            {
                inside = (from..to).contains(&(buffer.as_ptr() as usize));
            }
            line.strip_prefix("VmFlags:").filter(|_| inside)
        })
        .unwrap();
    let flags: Vec<&str> = flags.split_whitespace().collect();
    assert!(
        flags.contains(&"sh") && flags.contains(&"dc"),
        "shared, do not copy on fork: {flags:?}"
    );
}

#[test]
fn idle_memory_is_used_again_and_returned_by_trim() {
    let arena = Arena::new(64 * MIB).unwrap();
    let address = {
        let buffer = arena.alloc(8 * MIB).unwrap();
        buffer.as_ptr() as usize
    };
    assert_eq!(
        arena.usage(),
        ArenaUsage {
            allocated: 0,
            idle: 8 * MIB
        }
    );
    let again = arena.alloc(8 * MIB).unwrap();
    assert_eq!(again.as_ptr() as usize, address);
    assert_eq!(
        arena.usage(),
        ArenaUsage {
            allocated: 8 * MIB,
            idle: 0
        }
    );
    drop(again);

    arena.trim(3 * MIB);
    assert_eq!(arena.usage().idle, 3 * MIB);
    assert_eq!(backed(&arena), 3 * MIB);
    let mut kept = arena.alloc(PAGE).unwrap();
    kept.fill(7);
    arena.trim(0);
    assert_eq!(
        arena.usage(),
        ArenaUsage {
            allocated: PAGE,
            idle: 0
        }
    );
    assert_eq!(backed(&arena), PAGE);
    assert!(kept.iter().all(|&b| b == 7), "trim leaves live buffers alone");
    // Trimmed pages come back as fresh, present memory.
    let fresh = arena.alloc(8 * MIB).unwrap();
    assert!(fresh.iter().all(|&b| b == 0));
}

#[test]
fn bad_lengths_and_a_full_arena_are_errors() {
    let arena = Arena::new(1).unwrap();
    assert_eq!(arena.alloc(0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(
        arena.alloc(MAX_BUFFER + 1).unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
    let all = arena.alloc(MAX_BUFFER).unwrap();
    assert_eq!(arena.alloc(1).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    drop(all);
    arena.alloc(1).unwrap();
    assert!(Arena::new(usize::MAX).is_err());
}

#[test]
fn slices_share_without_copying_and_give_back_last() {
    let arena = Arena::new(MIB).unwrap();
    let mut buffer = arena.alloc(100).unwrap();
    for (i, b) in buffer.iter_mut().enumerate() {
        *b = i as u8;
    }
    let address = buffer.as_ptr();
    let slice = buffer.freeze();
    assert_eq!(slice.as_ptr(), address);
    let middle = slice.slice(10..20);
    assert_eq!(middle[..], (10..20).collect::<Vec<u8>>()[..]);
    assert_eq!(middle.slice(5..500)[..], [15, 16, 17, 18, 19]);
    assert!(middle.slice(50..usize::MAX).is_empty());
    let bytes = middle.slice(2..4).to_bytes();
    assert_eq!(bytes.as_ptr() as usize, address as usize + 12);
    let middle = middle.try_into_buffer().unwrap_err();
    drop((slice, middle));
    assert_eq!(arena.usage().allocated, PAGE, "the bytes keep the buffer");
    assert_eq!(bytes[..], [12, 13]);
    drop(bytes);
    assert_eq!(arena.usage().allocated, 0);
    let last = arena.alloc(100).unwrap().freeze().try_into_buffer().unwrap();
    assert_eq!(last.len(), 100);
}

#[test]
fn debug_output_shows_no_contents() {
    let arena = Arena::new(MIB).unwrap();
    let mut buffer = arena.alloc(6).unwrap();
    buffer.copy_from_slice(b"secret");
    let slice = buffer.freeze();
    let shown = format!("{slice:?} {:?}", arena);
    assert!(
        !shown.contains("secret") && !shown.contains("115, 101"),
        "{shown}"
    );
}

#[test]
fn allocation_waits_for_a_trim_that_holds_the_blocks() {
    let arena = Arena::new(MAX_BUFFER).unwrap();
    std::thread::scope(|scope| {
        let trimmer = scope.spawn(|| (0..50).for_each(|_| arena.trim(0)));
        while !trimmer.is_finished() {
            arena.alloc(MAX_BUFFER).unwrap()[0] = 1;
        }
    });
}

#[test]
fn threads_share_an_arena_and_never_a_page() {
    let arena = Arena::new(64 * MIB).unwrap();
    std::thread::scope(|scope| {
        for thread in 1..=6u8 {
            let arena = &arena;
            scope.spawn(move || {
                let mut held = Vec::new();
                for round in 0..400usize {
                    let len = (round * 7919 * usize::from(thread)) % (256 * 1024) + 1;
                    let mut buffer = arena.alloc(len).unwrap();
                    buffer.fill(thread);
                    held.push(buffer.freeze());
                    if held.len() > 8 {
                        let slice = held.swap_remove(round % 8);
                        assert!(slice.iter().all(|&b| b == thread), "another thread wrote here");
                    }
                    if round % 50 == 0 {
                        arena.trim(round * 1000);
                    }
                }
            });
        }
    });
    assert_eq!(arena.usage().allocated, 0);
    assert_eq!(arena.usage().idle, backed(&arena));
}

#[derive(Debug, Clone)]
enum Op {
    Alloc(usize),
    Free(usize),
    Grow(usize, usize),
    Trim(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (1usize..200_000).prop_map(Op::Alloc),
        1 => (1usize..4 * MIB).prop_map(Op::Alloc),
        4 => any::<usize>().prop_map(Op::Free),
        1 => (any::<usize>(), 1usize..400_000).prop_map(|(n, len)| Op::Grow(n, len)),
        1 => (0usize..2 * MIB).prop_map(Op::Trim),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn live_buffers_keep_their_bytes_and_the_books_match_the_kernel(
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let arena = Arena::new(32 * MIB).unwrap();
        let mut live: HashMap<usize, (Buffer, u8)> = HashMap::new();
        for (n, op) in ops.into_iter().enumerate() {
            let tag = n as u8;
            match op {
                Op::Alloc(len) => {
                    if let Ok(mut buffer) = arena.alloc(len) {
                        buffer.fill(tag);
                        live.insert(n, (buffer, tag));
                    }
                }
                Op::Free(pick) | Op::Grow(pick, _) if live.is_empty() => { let _ = pick; }
                Op::Free(pick) => {
                    let key = *live.keys().nth(pick % live.len()).unwrap();
                    live.remove(&key);
                }
                Op::Grow(pick, len) => {
                    let key = *live.keys().nth(pick % live.len()).unwrap();
                    let (buffer, tag) = live.get_mut(&key).unwrap();
                    buffer.set_len(len);
                    buffer.fill(*tag);
                }
                Op::Trim(keep) => {
                    arena.trim(keep);
                    prop_assert!(arena.usage().idle <= keep);
                }
            }
            for (buffer, tag) in live.values() {
                prop_assert!(buffer.iter().all(|b| b == tag));
            }
            let classes: usize = live.values().map(|(b, _)| b.capacity()).sum();
            prop_assert_eq!(arena.usage().allocated, classes);
            prop_assert!(arena.usage().idle <= backed(&arena));
        }
        live.clear();
        prop_assert_eq!(arena.usage().idle, backed(&arena), "all that is resident is idle");
        arena.trim(0);
        prop_assert_eq!(backed(&arena), 0);
        prop_assert!(arena.alloc(MAX_BUFFER).is_ok(), "all blocks joined again");
    }
}
