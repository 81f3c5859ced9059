//! The digest of rows on their way into a table, from the very bytes that COPY gets: what the warehouse's
//! `digest.py` says in SQL.
//!
//! A row's 64 bits are the exclusive or of its values' hashes, each seeded by its column's name (`hashtextextended` of
//! it, seeded by 0); a null's is 0. They are hashed once more, as `bigint` and seeded by 0, and summed as signed numbers
//! over the rows. Values are read as Postgres's `…_recv` functions read them, so that what is digested is what was sent;
//! what was stored is digested by Postgres when it is verified, by code that shares nothing with this.

use crate::jsonb_hash::Hasher;
use crate::postgres_hash as hash;

/// Why rows have no digest.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// The type is none whose hash is known.
    #[error("column `{column}`: the digest of Postgres type {postgres} is not known")]
    UnknownType {
        /// Name of the column.
        column: String,
        /// Its type.
        postgres: String,
    },
    /// The bytes are no rows of these columns.
    #[error("row {row} is not encoded as a COPY of these columns is")]
    NotRows {
        /// Place of the row.
        row: usize,
    },
    /// A value is none of its column's type.
    #[error("column `{column}`, row {row}: the value is no {postgres}")]
    NotOfType {
        /// Name of the column.
        column: String,
        /// Place of the row.
        row: usize,
        /// The column's type.
        postgres: String,
    },
}

/// A column of the rows.
pub struct DigestColumn {
    name: String,
    postgres: String,
    seed: u64,
    /// None: the digest does not cover it.
    kind: Option<Kind>,
}

#[derive(Clone, Copy)]
enum Kind {
    Boolean,
    Smallint,
    Integer,
    Bigint,
    Real,
    Double,
    Numeric,
    Bytes,
    Jsonb,
    Integers,
}

impl DigestColumn {
    /// A column of the table, of this Postgres type; without a type the digest does not cover it.
    pub fn new(name: String, postgres: Option<String>) -> Result<Self, DigestError> {
        let seed = hash::bytes(name.as_bytes(), 0);
        let Some(postgres) = postgres else {
            return Ok(Self {
                name,
                postgres: String::new(),
                seed,
                kind: None,
            });
        };
        let kind = match postgres.as_str() {
            "boolean" => Kind::Boolean,
            "smallint" => Kind::Smallint,
            "integer" => Kind::Integer,
            "bigint" | "timestamptz" => Kind::Bigint,
            "real" => Kind::Real,
            "double precision" => Kind::Double,
            "numeric" => Kind::Numeric,
            "text" | "bytea" => Kind::Bytes,
            "jsonb" => Kind::Jsonb,
            "integer[]" => Kind::Integers,
            _ => {
                return Err(DigestError::UnknownType {
                    column: name,
                    postgres,
                });
            }
        };
        Ok(Self {
            name,
            postgres,
            seed,
            kind: Some(kind),
        })
    }

    fn hash(&self, kind: Kind, value: &[u8], json: &mut Hasher) -> Option<u64> {
        let seed = self.seed;
        Some(match kind {
            Kind::Bytes => hash::bytes(value, seed),
            Kind::Numeric => numeric(value, seed)?,
            Kind::Boolean => hash::boolean(value.try_into().ok() == Some([1]), seed),
            Kind::Smallint => {
                hash::integer(i16::from_be_bytes(value.try_into().ok()?).into(), seed)
            }
            Kind::Integer => hash::integer(i32::from_be_bytes(value.try_into().ok()?), seed),
            Kind::Bigint => hash::bigint(i64::from_be_bytes(value.try_into().ok()?), seed),
            Kind::Real => hash::double(f32::from_be_bytes(value.try_into().ok()?).into(), seed),
            Kind::Double => hash::double(f64::from_be_bytes(value.try_into().ok()?), seed),
            // Behind the version of the form, which is 1.
            Kind::Jsonb => json.hash(value.strip_prefix(&[1])?, seed)?,
            Kind::Integers => integers(value, seed)?,
        })
    }
}

/// The digest of encoded rows, without header and trailer; 0 for none.
pub fn digest(rows: &[u8], columns: &[DigestColumn]) -> Result<i128, DigestError> {
    let mut rest = rows;
    let mut json = Hasher::default();
    let mut sum = 0;
    let mut row = 0;
    while !rest.is_empty() {
        let mut mixed = 0;
        let (count, fields) = split(rest).ok_or(DigestError::NotRows { row })?;
        if usize::try_from(i16::from_be_bytes(count)) != Ok(columns.len()) {
            return Err(DigestError::NotRows { row });
        }
        rest = fields;
        for column in columns {
            let value;
            (value, rest) = field(rest).ok_or(DigestError::NotRows { row })?;
            if let (Some(value), Some(kind)) = (value, column.kind) {
                mixed ^=
                    column
                        .hash(kind, value, &mut json)
                        .ok_or_else(|| DigestError::NotOfType {
                            column: column.name.clone(),
                            row,
                            postgres: column.postgres.clone(),
                        })?;
            }
        }
        sum += i128::from(hash::bigint(mixed.cast_signed(), 0).cast_signed());
        row += 1;
    }
    Ok(sum)
}

fn split<const N: usize>(bytes: &[u8]) -> Option<([u8; N], &[u8])> {
    let (first, rest) = bytes.split_first_chunk()?;
    Some((*first, rest))
}

/// The field that comes next, null or not, and what follows it.
fn field(bytes: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let (length, rest) = split(bytes)?;
    let length = i32::from_be_bytes(length);
    if length == -1 {
        return Some((None, rest));
    }
    let (value, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((Some(value), rest))
}

/// The most digits that the encoder writes.
const MOST_DIGITS: usize = 20;

/// Of whole numbers, which are all that is sent; Postgres would cut off what stands behind the point.
fn numeric(value: &[u8], seed: u64) -> Option<u64> {
    let (count, rest) = split(value)?;
    let (weight, rest) = split(rest)?;
    let (_sign_and_scale, rest) = split::<4>(rest)?;
    let (digits, odd) = rest.as_chunks();
    let mut buffer = [0; MOST_DIGITS];
    let kept = buffer.get_mut(..digits.len())?;
    if !odd.is_empty() || digits.len() != usize::from(u16::from_be_bytes(count)) {
        return None;
    }
    for (place, digit) in kept.iter_mut().zip(digits) {
        *place = u16::from_be_bytes(*digit);
    }
    let weight = i16::from_be_bytes(weight).into();
    Some(hash::numeric(kept, weight, seed))
}

/// `hash_array_extended` of an array of one dimension, or of none, without nulls.
fn integers(value: &[u8], seed: u64) -> Option<u64> {
    let (dimensions, rest) = split(value)?;
    let (_nulls_and_type, rest) = split::<8>(rest)?;
    let mut result = 1_u64;
    if i32::from_be_bytes(dimensions) == 0 {
        return Some(result);
    }
    let (_length_and_bound, mut rest) = split::<8>(rest)?;
    while !rest.is_empty() {
        let item;
        (item, rest) = field(rest)?;
        let item = i32::from_be_bytes(item?.try_into().ok()?);
        result = result
            .wrapping_mul(31)
            .wrapping_add(hash::integer(item, seed));
    }
    Some(result)
}
