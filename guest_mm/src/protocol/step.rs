//! The labels of the protocol blocks, as values.

use std::fmt;

/// Makes the enum, its labels and what they say of one list.
macro_rules! steps {
    ($($label:ident $text:literal;)*) => {
        /// A step of a protocol, by its label in the protocol block at the top of a module.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Step {
            $(#[doc = $text] $label,)*
        }

        impl Step {
            /// Every step.
            pub const ALL: &[Step] = &[$(Step::$label),*];

            /// What is done in it.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Step::$label => $text,)*
                }
            }
        }
    };
}

steps! {
    F1 "lock the page table";
    F3 "take a frame, zeroed";
    F4 "publish the leaf";
    F5 "install it in the window";
    F6 "unlock";
    Z1 "lock the table";
    Z2 "clear the entry";
    Z3 "zap the window";
    Z5 "free the frame";
    L1 "walk to the table";
    L2 "lock the table";
    L3 "does it still hang in the tree?";
    W3 "load the PTE";
    R2 "keep the table until every walker has left it";
    R3 "reuse the table";
    P1 "walk: PDE, then PTE";
    P2 "pin the frame";
    P3 "full barrier";
    P4 "is the PTE unchanged?";
    P5 "is the PDE unchanged?";
    P6 "is the frame marked exclusive?";
    P7 "unpin";
    C1 "lock the page directory, then the page table";
    C2 "freeze the PDE";
    C3 "zap the window";
    C5 "look for pins";
    C6 "copy the frames into a block";
    C7 "the PDE becomes the block; retire the page table";
    C8 "free the frames";
    X1 "take the PTE out";
    X2 "zap the window";
    X3 "full barrier";
    X4 "look for pins";
    X5 "clear the exclusive mark, unless pinned";
    X6 "put the PTE back, read-only";
    S1 "take the PTE out";
    S2 "zap the window";
    S3 "look for pins";
    S4 "compare with the shared page";
    S5 "the PTE becomes the shared page, read-only";
    S6 "free the frame";
    A1 "lock the page table";
    A2 "is the entry absent or missing?";
    A3 "publish the leaf";
    A4 "install it in the window; who waits goes on";
    T1 "lock the page directory, then the page table";
    T2 "is every entry absent, or the image's page in its place?";
    T3 "the PDE becomes the image's block";
    T4 "take the entries out";
    T5 "retire the page table";
    H1 "walk: nothing is mapped in the block";
    H2 "lock the page directory";
    H3 "is it still so?";
    H4 "the PDE becomes the image's block";
    K1 "walk: no huge leaf is in the way";
    K2 "lock the page table, made if there is none";
    K3 "is it still so?";
    K4 "copy the page; publish the copy";
    M1 "lock the page directory, then the page table";
    M2 "is every page there?";
    M3 "show the block huge";
}

impl Step {
    /// Its label.
    pub fn label(self) -> String {
        format!("{self:?}")
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?} {}", self.text())
    }
}
