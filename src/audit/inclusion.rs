//! Inclusion proofs: audit paths of RFC 6962 §2.1.1 from a few stored leaves.
//!
//! In: the roots of complete blocks of [`BLOCK_LEAVES`] leaves, kept while the tree grows, and a reader of leaves. Out: a path for
//! [`super::verify_inclusion`]. A path reads at most three blocks of leaves; the paths of one tree hash one root for each block of it.

use std::collections::HashMap;
use std::ops::Range;

use super::tree::{Frontier, node_hash};
use crate::model::Digest;

/// Leaves of one block.
pub const BLOCK_LEAVES: u64 = 256;

/// The roots of the complete blocks of a growing tree: 32 bytes for each [`BLOCK_LEAVES`] leaves.
#[derive(Debug, Clone, Default)]
pub struct BlockRoots {
    roots: Vec<Digest>,
    open: Frontier,
}

impl BlockRoots {
    /// Adds the next leaf.
    pub fn push(&mut self, leaf: Digest) {
        self.open.push(leaf);
        if self.open.size() == BLOCK_LEAVES {
            self.roots.push(self.open.root());
            self.open = Frontier::default();
        }
    }

    /// The root of a subtree that is exactly one complete block.
    fn block(&self, leaves: &Range<u64>) -> Option<Digest> {
        if !leaves.start.is_multiple_of(BLOCK_LEAVES) || leaves.end - leaves.start != BLOCK_LEAVES {
            return None;
        }
        let block = usize::try_from(leaves.start / BLOCK_LEAVES).ok()?;
        self.roots.get(block).copied()
    }
}

/// The audit paths of leaves of one tree. Each subtree is read and hashed once for all of them.
#[derive(Debug)]
pub struct InclusionPaths<'a, F> {
    size: u64,
    blocks: &'a BlockRoots,
    leaves: F,
    roots: HashMap<(u64, u64), Digest>,
}

impl<'a, F, E> InclusionPaths<'a, F>
where
    F: FnMut(Range<u64>) -> Result<Vec<Digest>, E>,
{
    /// Of the tree of the first `size` leaves. `leaves` reads the hashes of a range of at most [`BLOCK_LEAVES`] leaves.
    pub fn new(size: u64, blocks: &'a BlockRoots, leaves: F) -> Self {
        Self {
            size,
            blocks,
            leaves,
            roots: HashMap::new(),
        }
    }

    /// The path of a leaf, from the leaf upwards; empty for one beyond the tree.
    pub fn path(&mut self, index: u64) -> Result<Vec<Digest>, E> {
        let mut path = Vec::new();
        let mut subtree = 0..self.size;
        while index < subtree.end && subtree.end - subtree.start > 1 {
            let middle = split(&subtree);
            let (within, sibling) = if index < middle {
                (subtree.start..middle, middle..subtree.end)
            } else {
                (middle..subtree.end, subtree.start..middle)
            };
            path.push(self.root(sibling)?);
            subtree = within;
        }
        path.reverse();
        Ok(path)
    }

    fn root(&mut self, subtree: Range<u64>) -> Result<Digest, E> {
        let known = self.blocks.block(&subtree);
        let name = (subtree.start, subtree.end);
        if let Some(root) = known.or_else(|| self.roots.get(&name).copied()) {
            return Ok(root);
        }
        let root = if subtree.end - subtree.start <= BLOCK_LEAVES {
            let mut tree = Frontier::default();
            for leaf in (self.leaves)(subtree)? {
                tree.push(leaf);
            }
            tree.root()
        } else {
            let middle = split(&subtree);
            let left = self.root(subtree.start..middle)?;
            let right = self.root(middle..subtree.end)?;
            node_hash(&left, &right)
        };
        self.roots.insert(name, root);
        Ok(root)
    }
}

/// Where a subtree of two or more leaves splits: behind the largest power of two below its size (RFC 6962 §2.1).
fn split(subtree: &Range<u64>) -> u64 {
    let size = subtree.end - subtree.start;
    subtree.start + (1 << (size - 1).ilog2())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::audit::{Inclusion, leaf_hash, verify_inclusion};

    #[test]
    fn paths_verify_at_every_size_and_read_few_leaves() {
        let all: Vec<Digest> = (0u32..2_000).map(|n| leaf_hash(&n.to_be_bytes())).collect();
        let mut blocks = BlockRoots::default();
        all.iter().for_each(|leaf| blocks.push(*leaf));
        let sizes = (1..=20).chain([255, 256, 257, 511, 512, 513, 1_024, 1_300, 1_999, 2_000]);
        for size in sizes {
            let size: u64 = size;
            let mut tree = Frontier::default();
            all.iter()
                .take(usize::try_from(size).expect("small"))
                .for_each(|leaf| tree.push(*leaf));
            let root = tree.root();
            let few = [
                0,
                1,
                size / 3,
                size / 2,
                254,
                255,
                256,
                size.saturating_sub(2),
                size - 1,
            ];
            for index in few.into_iter().filter(|index| *index < size) {
                let mut read = 0;
                let mut leaves = |range: Range<u64>| {
                    read += range.end - range.start;
                    let (from, to) = (range.start, range.end);
                    Ok::<_, Infallible>(
                        all[usize::try_from(from).expect("small")
                            ..usize::try_from(to).expect("small")]
                            .to_vec(),
                    )
                };
                let path = InclusionPaths::new(size, &blocks, &mut leaves)
                    .path(index)
                    .expect("reads");
                let leaf = all[usize::try_from(index).expect("small")];
                let proof = Inclusion { index, size, path };
                assert!(verify_inclusion(leaf, &proof, root), "{index} of {size}");
                assert!(read <= 3 * BLOCK_LEAVES, "{index} of {size} reads {read}");
                let other = Inclusion {
                    index: (index + 1) % size,
                    ..proof
                };
                assert!(
                    size == 1 || !verify_inclusion(leaf, &other, root),
                    "{index} of {size}"
                );
            }
        }
    }
}
