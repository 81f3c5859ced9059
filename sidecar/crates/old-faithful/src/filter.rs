//! Which programs a key is. A table of first bytes dismisses most keys with one load.

use crate::model::{Mention, Pubkey};

/// What lookup tables keep of a key: enough to tell that it is none of the programs looked for. Two keys may share
/// it; then metadata is decompressed in vain.
#[must_use]
pub fn fingerprint(key: &Pubkey) -> u32 {
    u32::from_le_bytes([key[12], key[13], key[14], key[15]])
}

/// The programs looked for.
#[derive(Debug)]
pub struct ProgramFilter {
    /// Sorted, with each program's place in the request.
    programs: Vec<(Pubkey, u16)>,
    first_bytes: [bool; 256],
    /// Sorted.
    fingerprints: Vec<u32>,
}

impl ProgramFilter {
    /// Looks for `programs`. Of a program named twice the first place counts; places beyond `u16::MAX` are none.
    #[must_use]
    pub fn new(programs: &[Pubkey]) -> Self {
        let mut sorted: Vec<(Pubkey, u16)> = programs.iter().copied().zip(0..=u16::MAX).collect();
        sorted.sort_unstable();
        sorted.dedup_by_key(|(program, _)| *program);
        let mut first_bytes = [false; 256];
        for (program, _) in &sorted {
            first_bytes[usize::from(program[0])] = true;
        }
        let mut fingerprints: Vec<u32> = sorted.iter().map(|(key, _)| fingerprint(key)).collect();
        fingerprints.sort_unstable();
        Self {
            programs: sorted,
            first_bytes,
            fingerprints,
        }
    }

    /// Whether no program is looked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty()
    }

    /// Whether a key with this fingerprint may be one of the programs.
    #[must_use]
    pub fn may_be(&self, fingerprint: u32) -> bool {
        self.fingerprints.binary_search(&fingerprint).is_ok()
    }

    /// The place of `key` in the request's programs.
    #[inline]
    #[must_use]
    pub fn place(&self, key: &Pubkey) -> Option<u16> {
        if !self.first_bytes[usize::from(key[0])] {
            return None;
        }
        let found = self
            .programs
            .binary_search_by(|(program, _)| program.cmp(key));
        found.ok().map(|at| self.programs[at].1)
    }
}

/// The programs that one transaction mentions; reused from one transaction to the next.
#[derive(Debug, Default)]
pub struct Mentions {
    found: Vec<Mention>,
}

impl Mentions {
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.found.clear();
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Looks at a key. Static keys come before loaded ones.
    #[inline]
    pub fn look(&mut self, filter: &ProgramFilter, key: &Pubkey, loaded: bool) {
        if let Some(program) = filter.place(key)
            && self.found.iter().all(|seen| seen.program != program)
        {
            self.found.push(Mention {
                program,
                lookup_only: loaded,
            });
        }
    }

    /// The mentions in the order of the request.
    pub fn sorted(&mut self) -> Vec<Mention> {
        self.found.sort_unstable();
        self.found.clone()
    }
}
