//! Strict codec of every method: a request is validated against the descriptor before prost decodes it, so that unknown fields
//! are refused and never dropped. prost has no such mode. Responses are decoded leniently: a newer broker may send more.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::OnceLock;

use prost::bytes::Buf as _;
use prost::{Message, Name};
use prost_types::FileDescriptorSet;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto};
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic::{Code, Status};
use tonic_prost::{ProstDecoder, ProstEncoder};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{ERROR_DOMAIN, PACKAGE, descriptor};
use crate::model::Reason;

/// Deepest nesting of messages in a request, the request itself counted. An action's deepest parameter needs 14.
pub const DEPTH_MAX: usize = 16;
/// Most fields in a request, nested ones counted.
pub const FIELDS_MAX: usize = 10_000;

/// prost's encoding, with a decoder that refuses unknown fields in messages whose name ends in `Request`.
#[derive(Debug)]
pub struct StrictCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for StrictCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for StrictCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = StrictDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(buffers())
    }

    fn decoder(&mut self) -> Self::Decoder {
        StrictDecoder(PhantomData)
    }
}

/// Initial capacity of a buffer, in bytes; a larger message makes it grow. Most messages here are below it, and up to here an
/// allocation is one step of the allocator's (glibc's per-thread cache ends at 1,032 bytes).
const BUFFER_BYTES: usize = 1024;
/// Bytes of a stream's messages that are gathered before they are sent: tonic's own value.
const YIELD_BYTES: usize = 32 * 1024;

fn buffers() -> BufferSettings {
    BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
}

/// The decoding half of [`StrictCodec`].
#[derive(Debug)]
pub struct StrictDecoder<U>(PhantomData<U>);

impl<U: Message + Name + Default> Decoder for StrictDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if !U::NAME.ends_with("Request") {
            return ProstDecoder::default().decode(buf);
        }
        let bytes = buf.copy_to_bytes(buf.remaining());
        read(&bytes).map(Some).map_err(|error| error.status())
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffers()
    }
}

/// Reads a request strictly.
pub fn read<U: Message + Name + Default>(bytes: &[u8]) -> Result<U, StrictDecodeError> {
    let table = MessageTable::built_in()
        .ok_or_else(|| StrictDecodeError::new("", "this broker has no descriptor"))?;
    let root = table
        .root(U::PACKAGE, U::NAME)
        .ok_or_else(|| StrictDecodeError::new("", "of an unknown type"))?;
    table.validate(bytes, root)?;
    U::decode(bytes).map_err(|_| StrictDecodeError::new("", "cannot be decoded"))
}

/// Why a request's bytes were refused: where, in the descriptor's own names and a field number, and which rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("message{}{path}: {rule}", if .path.is_empty() { "" } else { " at " })]
pub struct StrictDecodeError {
    path: String,
    rule: String,
}

impl StrictDecodeError {
    fn new(path: &str, rule: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            rule: rule.into(),
        }
    }

    /// The same, one message further out.
    fn within(mut self, field: &str) -> Self {
        self.path = if self.path.is_empty() {
            field.to_owned()
        } else {
            format!("{field}.{}", self.path)
        };
        self
    }

    /// INVALID_ARGUMENT with reason MALFORMED.
    pub fn status(&self) -> Status {
        let details =
            ErrorDetails::with_error_info(Reason::Malformed.as_str(), ERROR_DOMAIN, HashMap::new());
        Status::with_error_details(Code::InvalidArgument, self.to_string(), details)
    }
}

/// How the value of a field is encoded, with what prost does not check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WireForm {
    /// A varint that fits the type.
    Varint(Range),
    Fixed64,
    Fixed32,
    Text,
    Bytes,
    Message(usize),
}

/// What a varint may hold. prost would cut what does not fit, and two readers could see two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    Any,
    Bool,
    Unsigned32,
    Signed32,
}

#[derive(Debug)]
struct Field {
    number: u32,
    name: String,
    form: WireForm,
    /// Fields that may stand once share a slot with the others of their oneof; repeated ones have none.
    slot: Option<usize>,
}

/// Every message of the descriptor, by place.
#[derive(Debug, Default)]
struct MessageTable {
    messages: Vec<Vec<Field>>,
    places: HashMap<String, usize>,
}

impl MessageTable {
    /// The table of the descriptor in this binary, built once.
    fn built_in() -> Option<&'static Self> {
        static TABLE: OnceLock<Option<MessageTable>> = OnceLock::new();
        TABLE
            .get_or_init(|| descriptor().and_then(|set| Self::build(&set)))
            .as_ref()
    }

    /// `None` if a field is of a kind that no message of ours has: a group, or a message that is not in the set.
    fn build(set: &FileDescriptorSet) -> Option<Self> {
        let mut named = Vec::new();
        for file in &set.file {
            collect(file.package(), &file.message_type, &mut named);
        }
        let places = named
            .iter()
            .enumerate()
            .map(|(place, (name, _))| (name.clone(), place))
            .collect();
        let mut table = Self {
            messages: Vec::new(),
            places,
        };
        for (_, message) in &named {
            let oneofs = message.oneof_decl.len();
            let fields = message
                .field
                .iter()
                .enumerate()
                .map(|(place, field)| table.field(field, oneofs + place));
            let fields = fields.collect::<Option<Vec<_>>>()?;
            table.messages.push(fields);
        }
        Some(table)
    }

    fn field(&self, field: &FieldDescriptorProto, own_slot: usize) -> Option<Field> {
        let form = match field.r#type() {
            Type::Bool => WireForm::Varint(Range::Bool),
            Type::Uint32 => WireForm::Varint(Range::Unsigned32),
            Type::Sint32 => WireForm::Varint(Range::Unsigned32),
            Type::Int32 | Type::Enum => WireForm::Varint(Range::Signed32),
            Type::Int64 | Type::Uint64 | Type::Sint64 => WireForm::Varint(Range::Any),
            Type::Double | Type::Fixed64 | Type::Sfixed64 => WireForm::Fixed64,
            Type::Float | Type::Fixed32 | Type::Sfixed32 => WireForm::Fixed32,
            Type::String => WireForm::Text,
            Type::Bytes => WireForm::Bytes,
            Type::Message => {
                WireForm::Message(*self.places.get(field.type_name().strip_prefix('.')?)?)
            }
            Type::Group => return None,
        };
        let oneof = field
            .oneof_index
            .and_then(|place| usize::try_from(place).ok());
        let slot = match field.label() {
            Label::Repeated => None,
            Label::Optional | Label::Required => Some(oneof.unwrap_or(own_slot)),
        };
        Some(Field {
            number: u32::try_from(field.number()).ok()?,
            name: field.name().to_owned(),
            form,
            slot,
        })
    }

    fn root(&self, package: &str, name: &str) -> Option<usize> {
        if package == PACKAGE {
            self.places.get(&format!("{package}.{name}")).copied()
        } else {
            None
        }
    }

    fn validate(&self, bytes: &[u8], root: usize) -> Result<(), StrictDecodeError> {
        let mut left = FIELDS_MAX;
        self.message(bytes, root, 1, &mut left)
    }

    fn message(
        &self,
        bytes: &[u8],
        place: usize,
        depth: usize,
        left: &mut usize,
    ) -> Result<(), StrictDecodeError> {
        if depth > DEPTH_MAX {
            return Err(StrictDecodeError::new(
                "",
                format!("nests deeper than {DEPTH_MAX} messages"),
            ));
        }
        let fields = self
            .messages
            .get(place)
            .ok_or_else(|| StrictDecodeError::new("", "of an unknown type"))?;
        let mut seen = Vec::new();
        let mut wire = Wire(bytes);
        while !wire.0.is_empty() {
            let (number, wire_type) = wire
                .tag()
                .ok_or_else(|| StrictDecodeError::new("", "has a broken tag"))?;
            *left = left.checked_sub(1).ok_or_else(|| {
                StrictDecodeError::new("", format!("has more than {FIELDS_MAX} fields"))
            })?;
            let field = fields
                .iter()
                .find(|field| field.number == number)
                .ok_or_else(|| StrictDecodeError::new("", format!("field {number} is unknown")))?;
            if let Some(slot) = field.slot {
                if seen.contains(&slot) {
                    return Err(StrictDecodeError::new(
                        &field.name,
                        format!("field {number}, or its oneof, stands twice"),
                    ));
                }
                seen.push(slot);
            }
            self.value(field, wire_type, &mut wire, depth, left)
                .map_err(|error| error.within(&field.name))?;
        }
        Ok(())
    }

    fn value(
        &self,
        field: &Field,
        wire_type: WireType,
        wire: &mut Wire<'_>,
        depth: usize,
        left: &mut usize,
    ) -> Result<(), StrictDecodeError> {
        let number = field.number;
        let cut = || StrictDecodeError::new("", format!("field {number} is cut short"));
        match (field.form, wire_type) {
            (WireForm::Varint(range), WireType::Varint) => {
                let value = wire.varint().ok_or_else(cut)?;
                range.accepts(value).then_some(()).ok_or_else(|| {
                    StrictDecodeError::new("", format!("field {number} is out of range"))
                })
            }
            (WireForm::Fixed64, WireType::Fixed64) => wire.take(8).map(drop).ok_or_else(cut),
            (WireForm::Fixed32, WireType::Fixed32) => wire.take(4).map(drop).ok_or_else(cut),
            (WireForm::Bytes, WireType::Len) => wire.prefixed().map(drop).ok_or_else(cut),
            (WireForm::Text, WireType::Len) => {
                let text = wire.prefixed().ok_or_else(cut)?;
                std::str::from_utf8(text)
                    .map(drop)
                    .map_err(|_| StrictDecodeError::new("", format!("field {number} is not UTF-8")))
            }
            (WireForm::Message(place), WireType::Len) => {
                self.message(wire.prefixed().ok_or_else(cut)?, place, depth + 1, left)
            }
            // proto3 packs repeated numbers; every reader takes both forms.
            (WireForm::Varint(range), WireType::Len) if field.slot.is_none() => {
                let mut packed = Wire(wire.prefixed().ok_or_else(cut)?);
                while !packed.0.is_empty() {
                    let value = packed.varint().ok_or_else(cut)?;
                    *left = left.checked_sub(1).ok_or_else(|| {
                        StrictDecodeError::new("", format!("has more than {FIELDS_MAX} fields"))
                    })?;
                    if !range.accepts(value) {
                        return Err(StrictDecodeError::new(
                            "",
                            format!("field {number} is out of range"),
                        ));
                    }
                }
                Ok(())
            }
            (
                WireForm::Varint(_)
                | WireForm::Fixed64
                | WireForm::Fixed32
                | WireForm::Text
                | WireForm::Bytes
                | WireForm::Message(_),
                WireType::Varint
                | WireType::Fixed64
                | WireType::Len
                | WireType::Group
                | WireType::Fixed32,
            ) => Err(StrictDecodeError::new(
                "",
                format!("field {number} is of another wire type"),
            )),
        }
    }
}

impl Range {
    fn accepts(self, value: u64) -> bool {
        match self {
            Self::Any => true,
            Self::Bool => value <= 1,
            Self::Unsigned32 => u32::try_from(value).is_ok(),
            // A negative one is sign-extended to 64 bits.
            Self::Signed32 => i32::try_from(value.cast_signed()).is_ok(),
        }
    }
}

fn collect<'a>(
    prefix: &str,
    messages: &'a [DescriptorProto],
    out: &mut Vec<(String, &'a DescriptorProto)>,
) {
    for message in messages {
        let name = format!("{prefix}.{}", message.name());
        collect(&name, &message.nested_type, out);
        out.push((name, message));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WireType {
    Varint,
    Fixed64,
    Len,
    Group,
    Fixed32,
}

/// What is left of a message's bytes.
struct Wire<'a>(&'a [u8]);

impl<'a> Wire<'a> {
    /// Field number and wire type. Numbers are 1 to 2^29 − 1.
    fn tag(&mut self) -> Option<(u32, WireType)> {
        let tag = u32::try_from(self.varint()?).ok()?;
        let wire_type = match tag & 7 {
            0 => WireType::Varint,
            1 => WireType::Fixed64,
            2 => WireType::Len,
            3 | 4 => WireType::Group,
            5 => WireType::Fixed32,
            _ => return None,
        };
        (tag >> 3 != 0).then_some((tag >> 3, wire_type))
    }

    /// At most ten bytes, within 64 bits.
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for place in 0..10_u32 {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            if place == 9 && *byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn prefixed(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.varint()?).ok()?;
        self.take(length)
    }
}
