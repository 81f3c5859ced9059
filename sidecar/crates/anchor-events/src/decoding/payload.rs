//! Reading payload bytes: a cursor, and the validation that a payload is a layout's, exactly.
//!
//! Nothing here allocates: a payload is often tried under several layouts, and most tries fail.

use super::layout::{Arena, Fields, Node, NodeId, Scalar, Shape, Step};

/// Why bytes are not a value of a layout. Offsets are bytes from the start of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Truncated {
        offset: usize,
        needs: usize,
        left: usize,
    },
    Invalid {
        offset: usize,
        what: Invalid,
    },
    Trailing {
        offset: usize,
        left: usize,
    },
}

/// What is invalid about a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invalid {
    Boolean(u8),
    OptionTag(u32),
    Variant { tag: u8, variants: usize },
    Utf8,
}

impl Fault {
    /// How many bytes of a payload the reading did not reach.
    pub(super) fn unexplained(self, payload: usize) -> usize {
        let (Self::Truncated { offset, .. }
        | Self::Invalid { offset, .. }
        | Self::Trailing { offset, .. }) = self;
        payload.saturating_sub(offset)
    }

    /// The stable word for the kind of fault.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Truncated { .. } => "truncated_payload",
            Self::Invalid { .. } => "invalid_value",
            Self::Trailing { .. } => "trailing_bytes",
        }
    }

    /// The sentence for people.
    pub(super) fn sentence(self, field: Option<&str>) -> String {
        let field = field
            .map(|name| format!("field `{name}` "))
            .unwrap_or_default();
        let code = self.code();
        match self {
            Self::Truncated {
                offset,
                needs,
                left,
            } => {
                format!("{code}: {field}at byte {offset} needs {needs} bytes, {left} left")
            }
            Self::Trailing { offset, left } => format!("{code}: {left} left at byte {offset}"),
            Self::Invalid { offset, what } => {
                let what = match what {
                    Invalid::Boolean(byte) => format!("{byte} is no boolean"),
                    Invalid::OptionTag(byte) => format!("{byte} is no option tag"),
                    Invalid::Variant { tag, variants } => format!("variant {tag} of {variants}"),
                    Invalid::Utf8 => "text that is not UTF-8".to_owned(),
                };
                format!("{code}: {field}at byte {offset}: {what}")
            }
        }
    }
}

/// A place in a payload.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], position: usize) -> Self {
        Self { bytes, position }
    }

    /// Bytes from the start of the payload.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.position)
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let taken = rest.get(..count).ok_or(Fault::Truncated {
            offset: self.position,
            needs: count,
            left: rest.len(),
        })?;
        self.position += count;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn boolean(&mut self) -> Result<bool, Fault> {
        let offset = self.position;
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Fault::Invalid {
                offset,
                what: Invalid::Boolean(other),
            }),
        }
    }

    /// Whether an option holds something.
    pub(super) fn option(&mut self) -> Result<bool, Fault> {
        let offset = self.position;
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Fault::Invalid {
                offset,
                what: Invalid::OptionTag(other.into()),
            }),
        }
    }

    /// Whether a coption holds something.
    pub(super) fn coption(&mut self) -> Result<bool, Fault> {
        let offset = self.position;
        match u32::from_le_bytes(self.array()?) {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Fault::Invalid {
                offset,
                what: Invalid::OptionTag(other),
            }),
        }
    }

    /// The place of an enum's variant.
    pub(super) fn variant(&mut self, variants: usize) -> Result<usize, Fault> {
        let offset = self.position;
        let tag = self.byte()?;
        if usize::from(tag) < variants {
            Ok(tag.into())
        } else {
            Err(Fault::Invalid {
                offset,
                what: Invalid::Variant { tag, variants },
            })
        }
    }

    /// A list's length, such that so many elements of at least `least` bytes can follow.
    pub(super) fn length(&mut self, least: usize) -> Result<usize, Fault> {
        let length = usize::try_from(u32::from_le_bytes(self.array()?)).unwrap_or(usize::MAX);
        let needs = length.saturating_mul(least);
        if needs > self.left() {
            return Err(Fault::Truncated {
                offset: self.position,
                needs,
                left: self.left(),
            });
        }
        Ok(length)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Fault> {
        let length = self.length(1)?;
        self.take(length)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Fault> {
        let length = self.length(1)?;
        let offset = self.position;
        std::str::from_utf8(self.take(length)?).map_err(|_| Fault::Invalid {
            offset,
            what: Invalid::Utf8,
        })
    }

    fn skip(&mut self, arena: &Arena, id: NodeId) -> Result<(), Fault> {
        if let Some(size) = arena.plain(id) {
            return self.take(size).map(drop);
        }
        match arena.node(id) {
            Node::Scalar(Scalar::Bool) => self.boolean().map(drop),
            Node::Scalar(Scalar::String) => self.text().map(drop),
            // All other scalars are plain.
            Node::Scalar(_) => self.bytes().map(drop),
            Node::Option(inner) => {
                if self.option()? {
                    self.skip(arena, *inner)?;
                }
                Ok(())
            }
            Node::Coption(inner) => {
                if self.coption()? {
                    self.skip(arena, *inner)
                } else {
                    self.take(arena.least(*inner)).map(drop)
                }
            }
            Node::Padded {
                before,
                inner,
                after,
            } => {
                self.take(*before)?;
                self.skip(arena, *inner)?;
                self.take(*after).map(drop)
            }
            Node::Vec(element) => {
                let length = self.length(arena.least(*element))?;
                if let Some(size) = arena.plain(*element) {
                    return self.take(length.saturating_mul(size)).map(drop);
                }
                self.skip_elements(arena, *element, length)
            }
            Node::Array(element, length) => {
                let needs = arena.least(id);
                if needs > self.left() {
                    return Err(Fault::Truncated {
                        offset: self.position,
                        needs,
                        left: self.left(),
                    });
                }
                self.skip_elements(arena, *element, *length)
            }
            Node::Fields(fields) => self.skip_fields(arena, fields),
            Node::Enum(variants) => {
                let variant = self.variant(variants.len())?;
                self.skip_fields(arena, &variants[variant].fields)
            }
        }
    }

    fn skip_elements(
        &mut self,
        arena: &Arena,
        element: NodeId,
        length: usize,
    ) -> Result<(), Fault> {
        (0..length).try_for_each(|_| self.skip(arena, element))
    }

    fn skip_fields(&mut self, arena: &Arena, fields: &Fields) -> Result<(), Fault> {
        match fields {
            Fields::Named(named) => named
                .iter()
                .try_for_each(|(_, node)| self.skip(arena, *node)),
            Fields::Tuple(nodes) => nodes.iter().try_for_each(|node| self.skip(arena, *node)),
        }
    }
}

/// Whether a payload that begins with the layout's discriminator is a value of it, to the last byte. The
/// fault comes with the place of its field, if it is in one.
pub(super) fn validate(shape: &Shape, payload: &[u8]) -> Result<(), (Option<usize>, Fault)> {
    let mut cursor = Cursor::new(payload, shape.discriminator.len());
    for step in &shape.steps {
        match step {
            Step::Plain { bytes, first_field } => {
                let start = cursor.position;
                if cursor.take(*bytes).is_err() {
                    cursor.position = start;
                    return Err(first_missing(shape, *first_field, &mut cursor));
                }
            }
            Step::Field(field) => {
                let node = shape.fields[*field].node;
                cursor
                    .skip(&shape.arena, node)
                    .map_err(|fault| (Some(*field), fault))?;
            }
        }
    }
    match cursor.left() {
        0 => Ok(()),
        left => Err((
            None,
            Fault::Trailing {
                offset: cursor.position,
                left,
            },
        )),
    }
}

/// The field of a run of plain ones that the payload is too short for.
fn first_missing(shape: &Shape, first: usize, cursor: &mut Cursor<'_>) -> (Option<usize>, Fault) {
    for (place, field) in shape.fields.iter().enumerate().skip(first) {
        if let Err(fault) = cursor.skip(&shape.arena, field.node) {
            return (Some(place), fault);
        }
    }
    (
        None,
        Fault::Truncated {
            offset: cursor.position,
            needs: 0,
            left: cursor.left(),
        },
    )
}
