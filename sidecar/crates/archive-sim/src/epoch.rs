//! The files of one epoch: the CAR file with its closing nodes, the index, the root's CID.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::car::{self, CarWriter, Cid, cid_text};
use crate::cbor::Node;
use crate::compact::CompactIndex;
use crate::pieces::{self, BlockEnd};
use crate::plan::{Indexes, Pieces};
use crate::{SLOTS_PER_EPOCH, SimError};

/// A Subset links to the blocks of so many slots: an epoch has several, so that no reader counts on one.
const SLOTS_OF_A_SUBSET: u64 = 24_000;

/// An epoch being written.
pub(crate) struct Epoch {
    pub(crate) number: u64,
    pub(crate) car: CarWriter,
    stem: PathBuf,
    ranges: Vec<u8>,
    blocks: Vec<(u64, Cid)>,
    indexes: Indexes,
    pub(crate) pieces: Option<Pieces>,
}

impl Epoch {
    pub(crate) fn create(folder: &Path, number: u64, indexes: Indexes) -> Result<Self, SimError> {
        let folder = folder.join(number.to_string());
        fs::create_dir_all(&folder)?;
        let stem = folder.join(format!("epoch-{number}"));
        let mut car = CarWriter::create(&stem.with_extension("car"))?;
        if indexes != Indexes::SlotRanges {
            car.sections = Some(Vec::new());
        }
        Ok(Self {
            number,
            car,
            stem,
            ranges: vec![0; SLOTS_PER_EPOCH as usize * 12],
            blocks: Vec::new(),
            indexes,
            pieces: None,
        })
    }

    /// Lists the block of `slot`, whose sections began at `offset` and end here with the Block node `cid`.
    pub(crate) fn end_block(&mut self, slot: u64, offset: u64, cid: Cid) {
        let length = (self.car.offset - offset) as u32;
        let at = (slot % SLOTS_PER_EPOCH) as usize * 12;
        self.ranges[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        self.ranges[at + 8..at + 12].copy_from_slice(&length.to_le_bytes());
        self.blocks.push((slot, cid));
    }

    /// Writes the closing nodes and the files beside the CAR file; returns that one's bytes.
    pub(crate) fn finish(mut self) -> Result<u64, SimError> {
        let mut subsets = Vec::new();
        let blocks = std::mem::take(&mut self.blocks);
        for group in blocks.chunk_by(|a, b| a.0 / SLOTS_OF_A_SUBSET == b.0 / SLOTS_OF_A_SUBSET) {
            let mut subset = Node::array(4);
            subset.unsigned(3);
            subset.unsigned(group[0].0);
            subset.unsigned(group[group.len() - 1].0);
            subset.roomy = true; // this list's length comes longer than it needs to be in real files, too
            subset.links(group.iter().map(|block| &block.1));
            subsets.push(self.car.section(&subset)?);
        }
        let mut epoch = Node::array(3);
        epoch.unsigned(4);
        epoch.unsigned(self.number);
        epoch.links(&subsets);
        let root = self.car.section(&epoch)?;
        let bytes = self.car.offset;
        if let Some(sections) = self.car.sections.take() {
            self.write_older_indexes(&root, &blocks, sections)?;
        }
        self.car.finish(&root)?;
        fs::write(
            self.stem.with_extension("cid"),
            format!("{}\n", cid_text(&root)),
        )?;
        if self.indexes != Indexes::Older {
            let name = format!("epoch-{}-slot-ranges.raw", self.number);
            fs::write(self.stem.with_file_name(name), &self.ranges)?;
        }
        if let Some(how) = self.pieces {
            let ends: Vec<BlockEnd> = blocks
                .iter()
                .map(|(slot, cid)| (*slot, *cid, end_of(&self.ranges, *slot) as usize))
                .collect();
            let header_bytes = car::header(&root).len();
            let car = self.stem.with_extension("car");
            pieces::split(&car, self.number, header_bytes, &ends, how)?;
        }
        Ok(bytes)
    }

    /// Of so few slots, hardly any without a block would answer falsely: entries without a slot of their own are added,
    /// under the key of a slot that has no block, with the CID of the block before it.
    fn write_older_indexes(
        &self,
        root: &Cid,
        blocks: &[(u64, Cid)],
        sections: Vec<(Cid, u64, u32)>,
    ) -> Result<(), SimError> {
        let mut slots: Vec<(u64, Cid)> = blocks.to_vec();
        for (block, next) in blocks.iter().zip(&blocks[1.min(blocks.len())..]) {
            if block.0 + 1 < next.0 && block.0.is_multiple_of(5) {
                slots.push((block.0 + 1, block.1));
            }
        }
        let places = sections.into_iter().map(|(cid, offset, bytes)| {
            let place = [&offset.to_le_bytes()[..6], &bytes.to_le_bytes()[..3]].concat();
            (cid.to_vec(), place)
        });
        // Equal nodes have one CID; the first one's place is as good as any.
        let places: BTreeMap<_, _> = places.rev().collect();
        let slots = slots
            .into_iter()
            .map(|(slot, cid)| (slot.to_le_bytes().to_vec(), cid.to_vec()));
        for (kind, buckets, entries) in [
            ("slot-to-cid", 44, slots.collect::<Vec<_>>()),
            ("cid-to-offset-and-size", 7, places.into_iter().collect()),
        ] {
            let index = CompactIndex {
                kind,
                epoch: self.number,
                root,
                buckets,
                entries,
            };
            let name = format!(
                "epoch-{}-{}-mainnet-{kind}.index",
                self.number,
                cid_text(root)
            );
            index.write(&self.stem.with_file_name(name))?;
        }
        Ok(())
    }
}

/// Where the block of a slot ends in the CAR file, by the slot-ranges file.
fn end_of(ranges: &[u8], slot: u64) -> u64 {
    let at = (slot % SLOTS_PER_EPOCH) as usize * 12;
    let (mut offset, mut length) = ([0; 8], [0; 4]);
    offset.copy_from_slice(&ranges[at..at + 8]);
    length.copy_from_slice(&ranges[at + 8..at + 12]);
    u64::from_le_bytes(offset) + u64::from(u32::from_le_bytes(length))
}
