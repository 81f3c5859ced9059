//! Writing the older compact indexes: values of one size behind 3-byte hashes of their keys, in buckets.

use std::fs;
use std::path::Path;

use twox_hash::XxHash64;

use crate::SimError;
use crate::car::Cid;

/// Values without keys: what the file is about, and its entries.
pub(crate) struct CompactIndex<'a> {
    pub(crate) kind: &'a str,
    pub(crate) epoch: u64,
    pub(crate) root: &'a Cid,
    pub(crate) buckets: u32,
    /// Key and value; all values have one size.
    pub(crate) entries: Vec<(Vec<u8>, Vec<u8>)>,
}

fn hash(domain: u32, key: &[u8]) -> u32 {
    let mut bytes = vec![0; 32];
    bytes[..4].copy_from_slice(&domain.to_le_bytes());
    bytes.extend(key);
    (XxHash64::oneshot(0, &bytes) & 0xff_ffff) as u32
}

/// Moves sorted entries to the places of a binary tree whose node k has the children 2k + 1 and 2k + 2.
fn eytzinger<T: Copy>(sorted: &mut impl Iterator<Item = T>, tree: &mut [Option<T>], node: usize) {
    if node < tree.len() {
        eytzinger(sorted, tree, 2 * node + 1);
        tree[node] = sorted.next();
        eytzinger(sorted, tree, 2 * node + 2);
    }
}

impl CompactIndex<'_> {
    pub(crate) fn write(self, path: &Path) -> Result<(), SimError> {
        let value_bytes = self.entries.first().map_or(0, |entry| entry.1.len());
        let mut header = Vec::new();
        header.extend((value_bytes as u64).to_le_bytes());
        header.extend(self.buckets.to_le_bytes());
        header.extend([1, 4]);
        for (name, value) in [
            ("epoch", &self.epoch.to_le_bytes()[..]),
            ("rootCid", &self.root[..]),
            ("network", b"mainnet"),
            ("kind", self.kind.as_bytes()),
        ] {
            for text in [name.as_bytes(), value] {
                header.push(text.len() as u8);
                header.extend(text);
            }
        }
        let mut file = b"compiszd".to_vec();
        file.extend((header.len() as u32).to_le_bytes());
        file.extend(header);

        let mut buckets: Vec<Vec<&(Vec<u8>, Vec<u8>)>> = vec![Vec::new(); self.buckets as usize];
        for entry in &self.entries {
            let bucket = XxHash64::oneshot(0, &entry.0) % u64::from(self.buckets);
            buckets[bucket as usize].push(entry);
        }
        let (mut table, mut contents) = (Vec::new(), Vec::<u8>::new());
        let start = file.len() + 16 * buckets.len();
        for bucket in buckets {
            let (domain, hashed) = without_collision(&bucket)?;
            table.extend(domain.to_le_bytes());
            table.extend((bucket.len() as u32).to_le_bytes());
            table.extend([3, 0]);
            table.extend(&((start + contents.len()) as u64).to_le_bytes()[..6]);
            let mut tree = vec![None; hashed.len()];
            eytzinger(&mut hashed.iter(), &mut tree, 0);
            for (hash, value) in tree.into_iter().flatten() {
                contents.extend(&hash.to_le_bytes()[..3]);
                contents.extend(*value);
            }
        }
        file.extend(table);
        file.extend(contents);
        Ok(fs::write(path, file)?)
    }
}

/// Hashes of keys, and the values behind them.
type Hashed<'a> = Vec<(u32, &'a [u8])>;

/// The first domain under which no two keys of a bucket have one hash, and the values by ascending hash.
fn without_collision<'a>(bucket: &[&'a (Vec<u8>, Vec<u8>)]) -> Result<(u32, Hashed<'a>), SimError> {
    for domain in 0..1_000 {
        let mut hashed: Hashed<'a> = bucket
            .iter()
            .map(|(key, value)| (hash(domain, key), value.as_slice()))
            .collect();
        hashed.sort_unstable_by_key(|entry| entry.0);
        if hashed.windows(2).all(|two| two[0].0 != two[1].0) {
            return Ok((domain, hashed));
        }
    }
    Err(SimError::Plan(
        "a bucket of the older indexes has too many entries".into(),
    ))
}
