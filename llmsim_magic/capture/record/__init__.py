"""Recording a forward pass: module hooks, events, and operators made of them."""
