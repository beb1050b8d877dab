//! The Merkle tree of RFC 9162, section 2.1, over SHA-256.

use aws_lc_rs::digest::{Context, SHA256};

/// A SHA-256.
pub type Digest = [u8; 32];

/// The digest of a leaf.
pub(super) fn leaf(content: &[u8]) -> Digest {
    digest(&[&[0], content])
}

/// The root over leaves, in their order.
pub(super) fn root(leaves: &[Digest]) -> Digest {
    match leaves {
        [] => digest(&[]),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(split(leaves.len()));
            node(&root(left), &root(right))
        }
    }
}

/// What shows that the leaf at `index` is below [`root`]: the digests beside its way, from the leaf up.
pub(super) fn path(leaves: &[Digest], index: usize) -> Vec<Digest> {
    if leaves.len() <= 1 {
        return Vec::new();
    }
    let middle = split(leaves.len());
    let (left, right) = leaves.split_at(middle);
    let (mut path, beside) = match index.checked_sub(middle) {
        Some(index) => (self::path(right, index), root(left)),
        None => (self::path(left, index), root(right)),
    };
    path.push(beside);
    path
}

/// The root that follows from a leaf and its path; `None` if a tree of `size` leaves has no such path.
pub(super) fn root_by_path(leaf: Digest, index: u64, size: u64, path: &[Digest]) -> Option<Digest> {
    let mut last = size.checked_sub(1).filter(|last| index <= *last)?;
    let mut index = index;
    let mut root = leaf;
    for beside in path {
        if last == 0 {
            return None;
        }
        if index & 1 == 1 || index == last {
            root = node(beside, &root);
            // A right end without a sibling goes up as it is.
            while index & 1 == 0 && index != 0 {
                index >>= 1;
                last >>= 1;
            }
        } else {
            root = node(&root, beside);
        }
        index >>= 1;
        last >>= 1;
    }
    (last == 0).then_some(root)
}

/// The SHA-256 of some bytes.
pub(super) fn sha256(content: &[u8]) -> Digest {
    digest(&[content])
}

fn node(left: &Digest, right: &Digest) -> Digest {
    digest(&[&[1], left, right])
}

/// The largest power of two below `length`, which is at least two.
fn split(length: usize) -> usize {
    length.next_power_of_two() / 2
}

fn digest(parts: &[&[u8]]) -> Digest {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut digest = Digest::default();
    // Both are 32 bytes long.
    digest.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    digest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::audit::payload::hexadecimal;

    #[test]
    fn roots_are_those_of_the_rfc() {
        // The tree heads that certificate transparency's implementations test with.
        let inputs: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let leaves: Vec<Digest> = inputs.iter().map(|input| leaf(input)).collect();
        let expected = [
            (0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (1, "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
            (2, "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"),
            (3, "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"),
            (7, "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c"),
            (8, "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"),
        ];
        for (count, head) in expected {
            assert_eq!(hexadecimal(&root(&leaves[..count])), head, "{count} leaves");
        }
    }

    proptest! {
        #[test]
        fn a_path_leads_to_the_root_from_its_own_leaf_alone(size in 1..200_usize, index: prop::sample::Index, other: Digest) {
            let leaves: Vec<Digest> = (0..size).map(|number| leaf(&number.to_le_bytes())).collect();
            let index = index.index(size);
            let path = path(&leaves, index);
            let at = |leaf, index: usize| root_by_path(leaf, index as u64, size as u64, &path);
            prop_assert_eq!(at(leaves[index], index), Some(root(&leaves)));
            prop_assert_ne!(at(other, index), Some(root(&leaves)));
            prop_assert_eq!(at(leaves[index], size), None);
            for wrong in (0..size).filter(|wrong| *wrong != index) {
                prop_assert_ne!(at(leaves[index], wrong), Some(root(&leaves)));
            }
        }

        #[test]
        fn whatever_path_comes_is_followed_to_its_end(leaf: Digest, index: u64, size: u64, path in prop::collection::vec(any::<Digest>(), 0..80)) {
            let _ = root_by_path(leaf, index, size, &path);
        }
    }
}
