"""What is written from the declarations: TypeScript types, and the AsyncAPI document."""
