//! Where the members of the kernel's structures are, as this kernel says itself in its type information (BTF).
//!
//! Layout of the file: <https://docs.kernel.org/bpf/btf.html>. It comes from the kernel, and is read like anything that
//! comes from outside all the same.

use std::{fs, io, path::Path};

use agent_common::TaskLayout;

const KERNEL: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
/// How deep a member may be inside structures without a name.
const DEPTH: u32 = 4;

const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const ENUM64: u32 = 19;

/// Type information, indexed.
pub(super) struct Btf<'a> {
    types: Vec<Type<'a>>,
    strings: &'a [u8],
}

struct Type<'a> {
    name: u32,
    info: u32,
    /// What follows the head.
    rest: &'a [u8],
}

impl Type<'_> {
    fn kind(&self) -> u32 {
        self.info >> 24 & 0x1f
    }
}

/// Finds out what the kernel programs need to know. Fails where the kernel has no type information, or other structures
/// than it has had so far.
pub(super) fn task_layout() -> io::Result<TaskLayout> {
    use std::os::unix::fs::MetadataExt as _;
    let bytes = fs::read(KERNEL)?;
    let unknown = |what: &str| io::Error::other(format!("{KERNEL} does not say where {what} is"));
    let btf = Btf::read(&bytes).ok_or_else(|| unknown("anything"))?;
    let offset = |structure: &str, member: &str| btf.offset(structure, member).ok_or_else(|| unknown(member));
    // The agent is in the host's own namespaces, or else it could neither see nor cover what is on it.
    let number = |namespace: &str| -> io::Result<u32> {
        let inode = fs::metadata(Path::new("/proc/self/ns").join(namespace))?.ino();
        u32::try_from(inode).map_err(io::Error::other)
    };
    let inum = offset("ns_common", "inum")?;
    Ok(TaskLayout {
        task_nsproxy: offset("task_struct", "nsproxy")?,
        nsproxy_net: offset("nsproxy", "net_ns")?,
        nsproxy_pid: offset("nsproxy", "pid_ns_for_children")?,
        net_inum: offset("net", "ns")? + inum,
        pid_inum: offset("pid_namespace", "ns")? + inum,
        host_net: number("net")?,
        host_pid: number("pid")?,
    })
}

impl<'a> Btf<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        if u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let field = |at: usize| Some(word(bytes, at)? as usize);
        let body = bytes.get(field(4)?..)?;
        let section = |offset: usize, length: usize| body.get(offset..offset.checked_add(length)?);
        let mut rest = section(field(8)?, field(12)?)?;
        let strings = section(field(16)?, field(20)?)?;
        let mut types = Vec::new();
        while !rest.is_empty() {
            let (name, info) = (word(rest, 0)?, word(rest, 4)?);
            let size = size_of_rest(info)?;
            let body = rest.get(12..12 + size)?;
            types.push(Type { name, info, rest: body });
            rest = rest.get(12 + size..)?;
        }
        Some(Self { types, strings })
    }

    /// Bytes from the beginning of a structure to one of its members, which may be inside structures without a name.
    pub(super) fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        self.types
            .iter()
            .filter(|candidate| candidate.kind() == STRUCT && self.is(candidate.name, structure))
            .find_map(|candidate| self.offset_in(candidate, member, DEPTH))
    }

    fn offset_in(&self, structure: &Type<'_>, member: &str, depth: u32) -> Option<u32> {
        /// Whether the offsets of members share their word with the size of a bit field.
        const BIT_FIELDS: u32 = 1 << 31;
        structure.rest.chunks_exact(12).find_map(|entry| {
            let (name, kind, bits) = (word(entry, 0)?, word(entry, 4)?, word(entry, 8)?);
            let bits = if structure.info & BIT_FIELDS == 0 { bits } else { bits & 0x00ff_ffff };
            let offset = bits / 8;
            if self.is(name, member) {
                return Some(offset);
            }
            // Members without a name: what is in them is in this structure too.
            let inner = self.types.get(usize::try_from(kind).ok()?.checked_sub(1)?)?;
            let is_inner = self.is(name, "") && matches!(inner.kind(), STRUCT | UNION);
            let inside = (is_inner && depth > 0).then(|| self.offset_in(inner, member, depth - 1))??;
            offset.checked_add(inside)
        })
    }

    fn is(&self, name: u32, text: &str) -> bool {
        let found = usize::try_from(name).ok().and_then(|start| self.strings.get(start..));
        let found = found.and_then(|bytes| bytes.split(|byte| *byte == 0).next());
        found == Some(text.as_bytes())
    }
}

/// How many bytes follow the head of a type.
fn size_of_rest(info: u32) -> Option<usize> {
    let members = (info & 0xffff) as usize;
    Some(match info >> 24 & 0x1f {
        INT | VAR | DECL_TAG => 4,
        ARRAY => 12,
        STRUCT | UNION | DATASEC | ENUM64 => 12 * members,
        ENUM | FUNC_PROTO => 8 * members,
        // Pointers, qualifiers, names, functions.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn btf(types: &[u32], strings: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        let length = u32::try_from(types.len() * 4).unwrap();
        for field in [24, 0, length, length, u32::try_from(strings.len()).unwrap()] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(types.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(strings);
        bytes
    }

    /// `struct task { int first; struct { int _; void *nsproxy; }; }`
    fn example() -> Vec<u8> {
        let strings = b"\0task\0first\0nsproxy\0int\0";
        let head = |kind: u32, members: u32| kind << 24 | members;
        let types: [&[u32]; 3] = [
            &[20, head(INT, 0), 4, 0],
            &[0, head(STRUCT, 2), 16, 0, 1, 0, 12, 1, 64],
            &[1, head(STRUCT, 2), 24, 6, 1, 0, 0, 2, 64],
        ];
        btf(&types.concat(), strings)
    }

    #[test]
    fn members_are_found_also_in_structures_without_a_name() {
        let bytes = example();
        let btf = Btf::read(&bytes).unwrap();
        assert_eq!(btf.offset("task", "first"), Some(0));
        assert_eq!(btf.offset("task", "nsproxy"), Some(16));
        assert_eq!(btf.offset("task", "nothing"), None);
        assert_eq!(btf.offset("tas", "first"), None);
    }

    #[test]
    fn whatever_is_cut_off_or_changed_is_survived() {
        let bytes = example();
        for end in 0..bytes.len() {
            if let Some(btf) = Btf::read(&bytes[..end]) {
                let _ = btf.offset("task", "nsproxy");
            }
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                if let Some(btf) = Btf::read(&changed) {
                    let _ = btf.offset("task", "nsproxy");
                }
            }
        }
    }

    #[test]
    fn a_structure_that_contains_itself_ends() {
        let types = [1, STRUCT << 24 | 1, 8, 0, 1, 0];
        let bytes = btf(&types, b"\0task\0");
        assert_eq!(Btf::read(&bytes).unwrap().offset("task", "nsproxy"), None);
    }

    #[test]
    fn this_kernel_is_understood() {
        if Path::new(KERNEL).exists() {
            let layout = task_layout().unwrap();
            assert!(layout.task_nsproxy > 0 && layout.host_net > 0 && layout.host_pid > 0, "{layout:?}");
        }
    }
}
