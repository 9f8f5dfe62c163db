//! Block lists that are planned, for changes of all kinds.

use blob_client::Block;
use proptest::prelude::*;

use super::*;
use crate::content::atoms::Over;

fn tuning() -> Tuning {
    Tuning {
        block: 64,
        granule: 16,
        copy_min: 4,
        copy_max: 128,
        zero_max: 64,
        max_blocks: 200,
        page: 4,
        ..Tuning::default()
    }
}

fn blocks(sizes: &[u64]) -> Vec<Block> {
    let id = |n: usize| BlockId(vec![n as u8]);
    sizes
        .iter()
        .enumerate()
        .map(|(n, size)| Block {
            id: id(n),
            size: *size,
        })
        .collect()
}

fn run(input: &PlanInput<'_>) -> Vec<Out> {
    let tuning = tuning();
    plan(input, &tuning, &Layout::new(&tuning)).unwrap()
}

#[test]
fn a_small_overwrite_splits_a_large_block_at_granules() {
    let blocks = blocks(&[64, 64]);
    let outs = run(&PlanInput {
        size: 128,
        base_valid: 128,
        base_size: 128,
        blocks: &blocks,
        over: &[(20..22, Over::Memory)],
        server_copy: true,
    });
    let keep = Out::Keep(BlockId(vec![1]), 64);
    let expected = vec![Out::Copy(0..16), Out::Fresh(16..32), Out::Copy(32..64), keep];
    assert_eq!(outs, expected);
}

#[test]
fn appending_bytes_keeps_few_blocks() {
    let tuning = Tuning {
        granule: 1 << 20,
        max_blocks: 50_000,
        ..tuning()
    };
    let layout = Layout::new(&Tuning::default());
    let mut sizes: Vec<u64> = Vec::new();
    let mut sent = 0;
    for n in 0..2000u64 {
        let list = blocks(&sizes);
        let outs = plan(
            &PlanInput {
                size: (n + 1) * 100,
                base_valid: n * 100,
                base_size: n * 100,
                blocks: &list,
                over: &[(n * 100..(n + 1) * 100, Over::Memory)],
                server_copy: true,
            },
            &tuning,
            &layout,
        )
        .unwrap();
        sizes = outs.iter().map(Out::len).collect();
        let fresh = |o: &&Out| matches!(o, Out::Fresh(_));
        sent += outs.iter().filter(fresh).map(Out::len).sum::<u64>();
    }
    assert!(sizes.len() <= 20, "{}", sizes.len());
    assert!(sent < 200_000 * 20, "{sent}");
}

#[test]
fn a_long_hole_is_few_zero_blocks() {
    let outs = run(&PlanInput {
        size: 6400,
        base_valid: 0,
        base_size: 0,
        blocks: &[],
        over: &[(6390..6400, Over::Memory)],
        server_copy: true,
    });
    assert!(outs.len() < 105, "{}", outs.len());
    assert_eq!(outs.last(), Some(&Out::Fresh(6390..6400)));
}

#[test]
fn too_many_blocks_are_joined() {
    let blocks = blocks(&vec![8; 250]);
    let outs = run(&PlanInput {
        size: 2001,
        base_valid: 2000,
        base_size: 2000,
        blocks: &blocks,
        over: &[(2000..2001, Over::Memory)],
        server_copy: true,
    });
    assert!(outs.len() <= 200);
    assert_eq!(outs.iter().map(Out::len).sum::<u64>(), 2001);
}

#[test]
fn blocks_grow_with_the_offset_and_tile_the_file() {
    let layout = Layout::new(&Tuning::default());
    assert_eq!(layout.block_of(0), 0..8 << 20);
    let mut at = 0;
    let mut blocks = 0;
    while at < layout.max_size() {
        let block = layout.block_of(at);
        assert_eq!(block.start, at);
        at = block.end;
        blocks += 1;
    }
    assert!(blocks <= 50_000, "{blocks}");
    assert!(layout.max_size() > 600 << 30);
}

proptest! {
    /// Every byte of the file comes from exactly one place, and from the right one.
    #[test]
    fn covers_the_file_once(
        sizes in prop::collection::vec(1u64..80, 0..8),
        single in any::<bool>(),
        valid in 0.0f64..=1.0,
        extra in 0u64..100,
        cuts in prop::collection::btree_set(0u64..600, 0..12),
        kinds in prop::collection::vec(0u8..4, 12),
        server_copy in any::<bool>(),
    ) {
        let list = blocks(&sizes);
        let base_size: u64 = sizes.iter().sum();
        let base_valid = (base_size as f64 * valid) as u64;
        let size = base_valid + extra;
        let cuts: Vec<u64> = cuts.into_iter().collect();
        let mut over = Vec::new();
        for (pair, kind) in cuts.windows(2).zip(&kinds) {
            let range = pair[0]..pair[1];
            match kind {
                0 => over.push((range, Over::Memory)),
                1 => over.push((range, Over::Hole)),
                2 if range.end <= size => {
                    over.push((range, Over::Staged(BlockId(vec![100 + *kind]))));
                }
                _ => {}
            }
        }
        let input = PlanInput {
            size, base_valid, base_size,
            blocks: if single { &[] } else { &list },
            over: &over, server_copy,
        };
        let outs = run(&input);
        let mut at = 0;
        for out in &outs {
            let range = at..at + out.len();
            prop_assert!(!range.is_empty());
            let touches = |r: &Range<u64>| r.start < range.end && range.start < r.end;
            let over_here: Vec<_> = over.iter().filter(|(r, _)| touches(r)).collect();
            match out {
                Out::Keep(id, len) => {
                    let n = id.0[0] as usize;
                    let start: u64 = sizes[..n].iter().sum();
                    prop_assert_eq!(start..start + sizes[n], range.clone());
                    prop_assert_eq!(*len, sizes[n]);
                    prop_assert!(over_here.is_empty() && range.end <= base_valid);
                }
                Out::Copy(from) => {
                    prop_assert!(server_copy);
                    prop_assert_eq!(from.clone(), range.clone());
                    prop_assert!(over_here.is_empty() && range.end <= base_valid);
                }
                Out::Fresh(from) => {
                    prop_assert_eq!(from.clone(), range.clone());
                    prop_assert!(!over_here.iter().any(|(_, o)| matches!(o, Over::Staged(_))));
                }
                Out::Staged(..) => {
                    prop_assert_eq!(over_here.len(), 1);
                    prop_assert_eq!(over_here[0].0.clone(), range.clone());
                }
                Out::Zero(_) => {
                    let hole = |at: u64| match over.iter().find(|(r, _)| r.contains(&at)) {
                        Some((_, o)) => *o == Over::Hole,
                        None => at >= base_valid,
                    };
                    prop_assert!(range.clone().all(hole));
                }
            }
            at = range.end;
        }
        prop_assert_eq!(at, size);
    }
}
