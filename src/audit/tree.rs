//! The Merkle tree of RFC 6962 §2.1: a leaf is hashed with prefix 0x00, a node with prefix 0x01.

use crate::model::Digest;

/// The hash of a leaf: SHA-256(0x00 ‖ entry).
pub fn leaf_hash(entry: &[u8]) -> Digest {
    Digest::sha256_parts(&[&[0], entry])
}

pub(super) fn node_hash(left: &Digest, right: &Digest) -> Digest {
    Digest::sha256_parts(&[&[1], left.as_bytes(), right.as_bytes()])
}

/// The right edge of a growing tree: the roots of its perfect subtrees, largest first. Enough to add leaves and to
/// compute the root; at most 64 hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Digest>,
}

impl Frontier {
    /// Restores a stored frontier; `None` when the number of peaks does not fit the size.
    pub fn from_parts(size: u64, peaks: Vec<Digest>) -> Option<Self> {
        (peaks.len() == size.count_ones() as usize).then_some(Self { size, peaks })
    }

    /// Number of leaves.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Roots of the perfect subtrees, largest first.
    pub fn peaks(&self) -> &[Digest] {
        &self.peaks
    }

    /// Adds one leaf.
    pub fn push(&mut self, leaf: Digest) {
        let mut node = leaf;
        // Each trailing one bit of the old size is a perfect subtree that the new leaf merges into the next larger.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                node = node_hash(&left, &node);
            }
        }
        self.peaks.push(node);
        self.size += 1;
    }

    /// The tree head: SHA-256 of nothing for the empty tree (RFC 6962 §2.1).
    pub fn root(&self) -> Digest {
        let mut peaks = self.peaks.iter().rev();
        match peaks.next() {
            None => Digest::sha256(b""),
            Some(smallest) => peaks.fold(*smallest, |right, left| node_hash(left, &right)),
        }
    }
}

/// A proof that a leaf is at an index of a tree of a given size (RFC 9162 §2.1.3).
#[derive(Debug, Clone)]
pub struct Inclusion {
    /// Index of the leaf, from 0.
    pub index: u64,
    /// Number of leaves of the tree.
    pub size: u64,
    /// Sibling hashes from the leaf upwards.
    pub path: Vec<Digest>,
}

/// Whether the proof leads from the leaf to the root (RFC 9162 §2.1.3.2).
pub fn verify_inclusion(leaf: Digest, proof: &Inclusion, root: Digest) -> bool {
    if proof.index >= proof.size {
        return false;
    }
    let (mut node, mut last, mut hash) = (proof.index, proof.size - 1, leaf);
    for sibling in &proof.path {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && hash == root
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6962 §2.1, by its recursive definition.
    fn root_by_definition(leaves: &[Digest]) -> Digest {
        match leaves {
            [] => Digest::sha256(b""),
            [one] => *one,
            _ => {
                let k = leaves.len().next_power_of_two() / 2;
                node_hash(
                    &root_by_definition(&leaves[..k]),
                    &root_by_definition(&leaves[k..]),
                )
            }
        }
    }

    #[test]
    fn frontier_root_matches_rfc6962() {
        let leaves: Vec<_> = (0u32..200).map(|n| leaf_hash(&n.to_be_bytes())).collect();
        let mut frontier = Frontier::default();
        for n in 0..=leaves.len() {
            assert_eq!(
                frontier.root(),
                root_by_definition(&leaves[..n]),
                "size {n}"
            );
            let again =
                Frontier::from_parts(frontier.size(), frontier.peaks().to_vec()).expect("fits");
            assert_eq!(again, frontier);
            if let Some(leaf) = leaves.get(n) {
                frontier.push(*leaf);
            }
        }
        assert!(Frontier::from_parts(3, vec![leaves[0]]).is_none());
    }
}
